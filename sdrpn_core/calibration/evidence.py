"""What calibration found, and every score behind it."""

from data_contracts.base import Settings
from data_contracts.calibration import CalibrationSettings
from data_contracts.enums import QuestionKind
from data_contracts.profiles import ModelProfile
from sdrpn_core.calibration.branch import BranchScore
from sdrpn_core.calibration.comparison import MethodScore
from sdrpn_core.calibration.denoising import StepScore
from sdrpn_core.calibration.heads import SelectionStep
from sdrpn_core.calibration.heat_map import render_heat_map
from sdrpn_core.calibration.planted import PlantedSinkScore
from sdrpn_core.calibration.scoring import HeadScore, LabelQuality, head_set
from sdrpn_core.calibration.sink_search import SinkScore
from sdrpn_core.calibration.thresholds import ThresholdScore
from sdrpn_core.calibration.unsupervised import UnsupervisedScore


class CalibrationEvidence(Settings):
    """Why the profile says what it says."""

    settings: CalibrationSettings
    num_questions: dict[QuestionKind, int]
    num_unusable: int
    """Questions whose answer was empty, did not end, or was of no finite numbers."""
    num_padded: int
    """Questions about letterboxed images, the only ones that padding masks matter for."""
    head_scores: dict[QuestionKind, tuple[HeadScore, ...]]
    """Every head by itself, over all questions of the kind."""
    selection: dict[QuestionKind, tuple[SelectionStep, ...]]
    """How the heads were chosen with boxes."""
    unsupervised: dict[QuestionKind, tuple[UnsupervisedScore, ...]]
    """Every head without boxes, over the scenes that choose."""
    sinks: tuple[SinkScore, ...]
    """Best rule of every kind; none kept means that no rule helps."""
    planted_sinks: tuple[PlantedSinkScore, ...]
    """Best sink rule of every kind where sinks are planted into the attention."""
    thresholds: tuple[ThresholdScore, ...]
    denoising: tuple[StepScore, ...]
    """Quality of the labels after each denoising step, on the unseen scenes."""
    branches: tuple[BranchScore, ...]
    methods: tuple[MethodScore, ...]
    """Labels of the ways of choosing heads: with boxes, without, and, if all sets of heads were
    tried, the best one."""
    quality: dict[QuestionKind, LabelQuality]
    """Labels with everything as chosen, on the unseen scenes."""
    overall_quality: LabelQuality


class CalibrationResult(Settings):
    """A profile that is ready to use, and what speaks for it."""

    profile: ModelProfile
    evidence: CalibrationEvidence

    def heat_map(self) -> str:
        """Head scores as SVG text."""
        heads = {
            kind: head_set(self.profile.heads[kind].grounding) for kind in self.evidence.head_scores
        }
        return render_heat_map(self.evidence.head_scores, heads)
