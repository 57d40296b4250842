"""Calibration as a whole: from questions with true boxes to a profile and its evidence."""

from collections.abc import Callable, Sequence

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
from sdrpn_core.calibration.planted import planted_sink_scores
from sdrpn_core.calibration.scoring import LabelScorer, score_heads
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.rpn.data import TrainingError

STAGE_VERSION = 2
"""Raise when the same model and scenes give another profile or other evidence."""

Report = Callable[[str], None]
"""Told in one line what is being done and how far things are."""


OnBranches = Callable[[ComparedBranches], None]
"""Given all branch layers compared so far, to go on from."""


class _Teller:
    """Tells how far things are: in words, and in questions worked through.

    A branch layer counts as one more look at every question.
    """

    def __init__(
        self,
        num_questions: int,
        num_branches: int,
        report: Report,
        on_progress: Progress,
        on_branches: OnBranches,
    ) -> None:
        self.report = report
        self._on_progress = on_progress
        self._on_branches = on_branches
        self._num_questions = num_questions
        self._num_units = num_questions * (1 + num_branches)

    def of_attention(self, num_done: int, num_questions: int) -> None:
        self.report(f"attention of {num_done} of {num_questions} questions")
        self._on_progress(num_done, self._num_units)

    def of_branches(self, compared: ComparedBranches) -> None:
        branch = compared.scores[-1]
        self.report(f"branch layer {branch.branch_layer}: validation F1 {branch.f1:.3f}")
        self._on_progress(self._num_questions * (1 + len(compared.scores)), self._num_units)
        self._on_branches(compared)


def calibrate(
    adapter: ModelAdapter,
    examples: Sequence[CalibrationExample],
    settings: CalibrationSettings,
    *,
    batch_size: int,
    source: str,
    report: Report = lambda line: None,
    on_progress: Progress = lambda num_done, num_units: None,
    earlier: ComparedBranches | None = None,
    on_branches: OnBranches = lambda compared: None,
) -> CalibrationResult:
    """Find heads, sink rule, label thresholds and branch layer of a model.

    Args:
        adapter: the frozen model; its profile needs no heads.
        examples: questions with true boxes; at least three images of every kind.
        settings: what to try, and which method decides.
        batch_size: questions per forward pass.
        source: where the examples come from, for the profile's ``source``.
        report: told about progress, in words.
        on_progress: told about progress, in units of work.
        earlier: branch layers that a calibration which was stopped had compared.
        on_branches: given the same, after each one.

    Raises:
        CalibrationError: if answers are unusable or grids differ, or there are too many sets of
            heads to try exhaustively.
    """
    profile = adapter.profile
    num_branches = len(branches_of(adapter, settings))
    teller = _Teller(len(examples), num_branches, report, on_progress, on_branches)
    check_number_of_sets(profile.num_layers * profile.num_heads, settings)
    first = [example.request for example in examples[:batch_size]]
    maps = capture_maps(
        adapter,
        examples,
        max_new_tokens=settings.max_new_tokens,
        batch_size=batch_size,
        dimensions=find_sink_dimensions(adapter, first, settings.num_sink_dimensions),
        on_progress=teller.of_attention,
    )
    for kind in sorted({example.request.kind for example in examples} - set(kinds_of(maps))):
        report(f"no {kind.value} question got a whole answer: the profile has no heads for them")
    report("heads, sinks and thresholds")
    labels = profile.labels
    scorer = LabelScorer(maps)
    boxes = search_labels(scorer, labels, settings)
    unsupervised = search_unsupervised(maps, labels, settings)
    chosen = (boxes if settings.method == BOXES else unsupervised).choice
    branches = _branches(adapter, examples, maps, chosen, settings, batch_size, teller, earlier)
    if settings.exhaustive_heads:
        report(f"all sets of up to {settings.exhaustive_heads} heads")
    evidence = _evidence(scorer, chosen, boxes, unsupervised, branches, settings)
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


def _branches(
    adapter: ModelAdapter,
    examples: Sequence[CalibrationExample],
    maps: AttentionMaps,
    chosen: LabelChoice,
    settings: CalibrationSettings,
    batch_size: int,
    teller: _Teller,
    earlier: ComparedBranches | None,
) -> list[BranchScore]:
    """Branch layers compared; none if none are to be tried, or the labels cannot train an RPN."""
    if not settings.num_branch_candidates:
        return []
    try:
        return compare_branches(
            adapter,
            [examples[index] for index in maps.example_indices],
            chosen.training_labels(maps),
            settings,
            batch_size=batch_size,
            earlier=earlier,
            on_branch=teller.of_branches,
        )
    except TrainingError as error:
        # What was found about the heads is what tells why: it must not be lost.
        teller.report(f"branch layers cannot be compared: {error}")
        return []


def _evidence(
    scorer: LabelScorer,
    chosen: LabelChoice,
    boxes: LabelSearch,
    unsupervised: UnsupervisedSearch,
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
        planted_sinks=(
            tuple(planted_sink_scores(maps, boxes.choice, settings))
            if settings.planted_sinks
            else ()
        ),
        thresholds=boxes.thresholds,
        denoising=tuple(score_denoising(maps, chosen.heads, chosen.labels, maps.unseen)),
        branches=tuple(branches),
        methods=tuple(compare_methods(scorer, choices, settings)),
        quality=by_kind,
        overall_quality=overall,
    )


def _num_padded(maps: AttentionMaps) -> int:
    sizes = maps.image_sizes
    return 0 if sizes is None else int((sizes[:, 0] != sizes[:, 1]).sum())
