"""Calibration as a whole: from questions with true boxes to a profile and its evidence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from data_contracts.calibration import CalibrationSettings
from data_contracts.profiles import ModelProfile
from sdrpn_core.calibration.branch import (
    BranchScore,
    ComparedBranches,
    branches_of,
    chosen_shape,
    compare_branches,
)
from sdrpn_core.calibration.comparison import BOXES, UNSUPERVISED, compare_methods
from sdrpn_core.calibration.denoising import score_denoising
from sdrpn_core.calibration.dimensions import find_sink_dimensions
from sdrpn_core.calibration.evidence import CalibrationEvidence, CalibrationResult
from sdrpn_core.calibration.examples import (
    AttentionMaps,
    CalibrationExample,
    Progress,
    capture_maps,
)
from sdrpn_core.calibration.exhaustive import check_number_of_sets
from sdrpn_core.calibration.label_search import (
    LabelChoice,
    LabelSearch,
    UnsupervisedSearch,
    kinds_of,
    search_labels,
    search_unsupervised,
    unseen_quality,
)
from sdrpn_core.calibration.planted import PlantedSinkScore, planted_sink_scores
from sdrpn_core.calibration.scoring import LabelScorer, score_heads
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.rpn.data import TrainingError

STAGE_VERSION = 2
"""Raise when the same model and scenes give another profile or other evidence."""


@dataclass(frozen=True)
class CalibrationObserver:
    """Functions that are told how a calibration gets on; those that are not given ignore it."""

    report: Callable[[str], None] = lambda line: None
    """Told in one line what is being done, and what has been found."""
    on_progress: Progress = lambda num_done, num_units: None
    """Told (units of work done, units in all): one for each question that the model has answered,
    and for each question of each branch layer that has been compared."""
    on_branches: Callable[[ComparedBranches], None] = lambda compared: None
    """Given all branch layers compared so far after each one, so that they can be passed as
    ``earlier`` if the calibration is stopped."""


_SILENT = CalibrationObserver()


def calibrate(
    adapter: ModelAdapter,
    examples: Sequence[CalibrationExample],
    settings: CalibrationSettings,
    *,
    batch_size: int,
    source: str,
    earlier: ComparedBranches | None = None,
    observer: CalibrationObserver = _SILENT,
) -> CalibrationResult:
    """Find heads, sink rule, label thresholds and branch layer of a model.

    Args:
        adapter: the frozen model; its profile needs no heads.
        examples: questions with true boxes; at least three images of every kind.
        settings: what to try, and which method decides.
        batch_size: questions per forward pass.
        source: where the examples come from, for the profile's ``source``.
        earlier: branch layers that a calibration which was stopped had compared.
        observer: told about progress.

    Raises:
        CalibrationError: if answers are unusable or grids differ, there are too many sets of heads
            to try exhaustively, or there is no room for planted sinks.
    """
    profile = adapter.profile
    num_heads = len(adapter.decoder.attention_layers) * profile.num_heads
    check_number_of_sets(num_heads, settings)
    calibration = _Calibration(adapter, examples, settings, batch_size, observer)
    maps = calibration.capture_maps()
    observer.report("heads, sinks and thresholds")
    scorer = LabelScorer(maps)
    boxes = search_labels(scorer, profile.labels, settings)
    unsupervised = search_unsupervised(maps, profile.labels, settings)
    chosen = (boxes if settings.method == BOXES else unsupervised).choice
    # Before branch layers are trained: where there is no room for sinks, that work would be lost.
    planted = planted_sink_scores(maps, boxes.choice, settings) if settings.planted_sinks else []
    branches = calibration.compare_branches(maps, chosen, earlier)
    if settings.exhaustive_heads:
        observer.report(f"all sets of up to {settings.exhaustive_heads} heads")
    evidence = _evidence(scorer, chosen, boxes, unsupervised, planted, branches, settings)
    quality = evidence.overall_quality
    calibrated = profile.model_copy(
        update={
            "heads": chosen.heads,
            "labels": chosen.labels,
            "rpn": chosen_shape(profile, branches, settings),
            "source": (
                f"{source}; labels on unseen scenes: centre precision "
                f"{quality.centre_precision:.2f}, recall {quality.recall:.2f}"
            ),
        }
    )
    return CalibrationResult(
        profile=ModelProfile.model_validate(calibrated.model_dump()), evidence=evidence
    )


@dataclass(frozen=True)
class _Calibration:
    """The parts of a calibration that run the model, and tell the observer how far they are."""

    adapter: ModelAdapter
    examples: Sequence[CalibrationExample]
    settings: CalibrationSettings
    batch_size: int
    observer: CalibrationObserver

    def capture_maps(self) -> AttentionMaps:
        """Attention of every head to the examples' images; says which kinds got no answers.

        Raises:
            CalibrationError: if answers are unusable or grids differ.
        """
        first = [example.request for example in self.examples[: self.batch_size]]
        maps = capture_maps(
            self.adapter,
            self.examples,
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=self.batch_size,
            dimensions=find_sink_dimensions(self.adapter, first, self.settings.num_sink_dimensions),
            on_progress=self._captured,
        )
        for kind in sorted({e.request.kind for e in self.examples} - set(kinds_of(maps))):
            self.observer.report(
                f"no {kind.value} question got a whole answer: the profile has no heads for them"
            )
        return maps

    def compare_branches(
        self, maps: AttentionMaps, chosen: LabelChoice, earlier: ComparedBranches | None
    ) -> list[BranchScore]:
        """Scores of the branch layers; none if none are to be tried, or no RPN can be trained on
        the labels."""
        if not self.settings.num_branch_candidates:
            return []
        try:
            return compare_branches(
                self.adapter,
                [self.examples[index] for index in maps.example_indices],
                chosen.training_labels(maps),
                self.settings,
                batch_size=self.batch_size,
                earlier=earlier,
                on_branch=self._compared,
            )
        except TrainingError as error:
            # What was found about the heads is what tells why: it must not be lost.
            self.observer.report(f"branch layers cannot be compared: {error}")
            return []

    @cached_property
    def _num_units(self) -> int:
        """A branch layer counts as one more look at every question."""
        return len(self.examples) * (1 + len(branches_of(self.adapter, self.settings)))

    def _captured(self, num_done: int, num_questions: int) -> None:
        self.observer.report(f"attention of {num_done} of {num_questions} questions")
        self.observer.on_progress(num_done, self._num_units)

    def _compared(self, compared: ComparedBranches) -> None:
        branch = compared.scores[-1]
        self.observer.report(f"branch layer {branch.branch_layer}: validation F1 {branch.f1:.3f}")
        num_done = len(self.examples) * (1 + len(compared.scores))
        self.observer.on_progress(num_done, self._num_units)
        self.observer.on_branches(compared)


def _evidence(
    scorer: LabelScorer,
    chosen: LabelChoice,
    boxes: LabelSearch,
    unsupervised: UnsupervisedSearch,
    planted: Sequence[PlantedSinkScore],
    branches: Sequence[BranchScore],
    settings: CalibrationSettings,
) -> CalibrationEvidence:
    maps = scorer.maps
    kinds = kinds_of(maps)
    by_kind, overall = unseen_quality(chosen.counts(scorer), maps)
    choices = {BOXES: boxes.choice, UNSUPERVISED: unsupervised.choice}
    return CalibrationEvidence(
        settings=settings,
        num_questions={kind: int(maps.of_kind(kind).sum()) for kind in kinds},
        num_unusable=maps.num_unusable,
        num_padded=_num_padded(maps),
        head_scores={
            kind: tuple(score_heads(scorer, chosen.labels, maps.of_kind(kind))) for kind in kinds
        },
        selection=boxes.selection,
        unsupervised=unsupervised.scores,
        sinks=boxes.sinks,
        planted_sinks=tuple(planted),
        thresholds=boxes.thresholds,
        denoising=tuple(score_denoising(scorer, chosen.heads, chosen.labels, maps.unseen)),
        branches=tuple(branches),
        methods=tuple(compare_methods(scorer, choices, settings)),
        quality=by_kind,
        overall_quality=overall,
    )


def _num_padded(maps: AttentionMaps) -> int:
    sizes = maps.image_sizes
    return 0 if sizes is None else int((sizes[:, :2] != sizes[:, 2:]).any(axis=1).sum())
