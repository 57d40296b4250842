"""Calibration as a whole: from attention maps with true boxes to a profile and its evidence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_contracts.base import Settings
from data_contracts.calibration import CalibrationSettings
from data_contracts.enums import QuestionKind
from data_contracts.label_settings import LabelSettings
from data_contracts.profiles import HeadSelection, ModelProfile
from sdrpn_core.calibration.branch import BranchScore, chosen_shape, compare_branches
from sdrpn_core.calibration.denoising import StepScore, score_denoising
from sdrpn_core.calibration.examples import AttentionMaps, CalibrationExample, capture_maps
from sdrpn_core.calibration.heads import SelectionStep, select_heads_by_kind
from sdrpn_core.calibration.heat_map import render_heat_map
from sdrpn_core.calibration.scoring import (
    HeadScore,
    LabelQuality,
    LabelScorer,
    grouped,
    head_set,
    mean_map,
    score_heads,
    sink_map,
)
from sdrpn_core.calibration.sinks import SinkScore, search_sinks
from sdrpn_core.calibration.thresholds import ThresholdScore, label_counts, sweep_thresholds
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.pseudo_labels import make_pseudo_labels

Report = Callable[[str], None]
"""Told in one line what was found or how far things are."""


class CalibrationEvidence(Settings):
    """Why the profile says what it says."""

    settings: CalibrationSettings
    num_questions: dict[QuestionKind, int]
    num_unusable: int
    """Questions whose answer was empty or did not end."""
    num_padded: int
    """Questions about letterboxed images, the only ones that padding masks matter for."""
    head_scores: dict[QuestionKind, tuple[HeadScore, ...]]
    """Every head by itself, over all questions of the kind."""
    selection: dict[QuestionKind, tuple[SelectionStep, ...]]
    sinks: tuple[SinkScore, ...]
    """Best rule at every threshold; none kept means that no rule helps."""
    thresholds: tuple[ThresholdScore, ...]
    denoising: tuple[StepScore, ...]
    """On the unseen scenes."""
    branches: tuple[BranchScore, ...]
    quality: dict[QuestionKind, LabelQuality]
    """Labels with everything as chosen, on the unseen scenes."""
    overall_quality: LabelQuality


@dataclass(frozen=True)
class CalibrationResult:
    """A profile that is ready to use, and what speaks for it."""

    profile: ModelProfile
    evidence: CalibrationEvidence

    def heat_map(self) -> str:
        """Head scores as SVG text."""
        heads = {
            kind: head_set(self.profile.heads[kind].grounding) for kind in self.evidence.head_scores
        }
        return render_heat_map(self.evidence.head_scores, heads)


def calibrate(
    adapter: ModelAdapter,
    examples: Sequence[CalibrationExample],
    settings: CalibrationSettings,
    *,
    batch_size: int,
    source: str,
    report: Report = lambda line: None,
) -> CalibrationResult:
    """Find heads, sink rule, label thresholds and branch layer of a model.

    Args:
        adapter: the frozen model; its profile needs no heads.
        examples: questions with true boxes; at least three images of every kind.
        settings: what to try.
        batch_size: questions per forward pass.
        source: where the examples come from, for the profile's ``source``.
        report: told about progress.

    Raises:
        CalibrationError: if answers are unusable or grids differ.
    """
    maps = capture_maps(
        adapter,
        examples,
        max_new_tokens=settings.max_new_tokens,
        batch_size=batch_size,
        on_progress=lambda done, total: report(f"attention of {done} of {total} questions"),
    )
    found = search_labels(maps, adapter.profile.labels, settings)
    for line in found.lines():
        report(line)
    branches: list[BranchScore] = []
    if settings.num_branch_candidates:
        branches = compare_branches(
            adapter,
            [examples[index] for index in maps.example_indices],
            found.training_labels,
            settings,
            batch_size=batch_size,
            on_branch=lambda b: report(f"branch layer {b.branch_layer}: validation F1 {b.f1:.3f}"),
        )
    evidence = found.evidence(maps, branches, settings)
    quality = evidence.overall_quality
    profile = adapter.profile.model_copy(
        update={
            "heads": found.heads,
            "labels": found.labels,
            "rpn": chosen_shape(adapter.profile, branches, settings),
            "source": (
                f"{source}; labels on unseen scenes: precision {quality.precision:.2f}, "
                f"recall {quality.recall:.2f}"
            ),
        }
    )
    return CalibrationResult(ModelProfile.model_validate(profile.model_dump()), evidence)


@dataclass(frozen=True, eq=False)
class LabelSearch:
    """Heads, sinks and thresholds that were found, and every score on the way."""

    heads: dict[QuestionKind, HeadSelection]
    labels: LabelSettings
    head_scores: dict[QuestionKind, tuple[HeadScore, ...]]
    selection: dict[QuestionKind, tuple[SelectionStep, ...]]
    sinks: tuple[SinkScore, ...]
    thresholds: tuple[ThresholdScore, ...]
    denoising: tuple[StepScore, ...]
    quality: dict[QuestionKind, LabelQuality]
    overall_quality: LabelQuality
    training_labels: list[NDArray[np.int8]]
    """(h, w) pseudo-label of every usable question."""

    def lines(self) -> list[str]:
        """The findings in a few lines."""
        lines = [
            f"{kind.value}: heads {selection.grounding}, sinks "
            f"{'none help' if selection.sink is None else selection.sink.model_dump()}, "
            f"precision {self.quality[kind].precision:.2f}, recall {self.quality[kind].recall:.2f}"
            for kind, selection in self.heads.items()
        ]
        foreground = self.labels.foreground_ratio_threshold
        background = self.labels.background_ratio_threshold
        return [*lines, f"thresholds: foreground {foreground}, background {background}"]

    def evidence(
        self, maps: AttentionMaps, branches: Sequence[BranchScore], settings: CalibrationSettings
    ) -> CalibrationEvidence:
        """Everything that a reader may want to check."""
        sizes = maps.image_sizes
        return CalibrationEvidence(
            settings=settings,
            num_questions={kind: int(maps.of_kind(kind).sum()) for kind in self.heads},
            num_unusable=maps.num_unusable,
            num_padded=0 if sizes is None else int((sizes[:, 0] != sizes[:, 1]).sum()),
            head_scores=self.head_scores,
            selection=self.selection,
            sinks=self.sinks,
            thresholds=self.thresholds,
            denoising=self.denoising,
            branches=tuple(branches),
            quality=self.quality,
            overall_quality=self.overall_quality,
        )


def search_labels(
    maps: AttentionMaps, labels: LabelSettings, settings: CalibrationSettings
) -> LabelSearch:
    """Find heads, then sinks, then thresholds, from attention maps alone.

    Where the thresholds change, heads and sinks are looked for once more under the new ones.

    Args:
        maps: attention of every head, with true boxes.
        labels: label settings to start from; the sink threshold is set by what is found.
        settings: what to try.
    """
    scorer = LabelScorer(maps)
    first = _search_once(scorer, labels, settings)
    if first.labels.foreground_ratio_threshold == labels.foreground_ratio_threshold:
        return first
    again = _search_once(scorer, first.labels, settings)
    return again if _worst_f1(again) > _worst_f1(first) else first


def _search_once(
    scorer: LabelScorer, labels: LabelSettings, settings: CalibrationSettings
) -> LabelSearch:
    maps = scorer.maps
    start = labels.model_copy(update={"sink_threshold": None})
    kinds = [kind for kind in QuestionKind if maps.of_kind(kind).any()]
    choices = select_heads_by_kind(scorer, start, kinds, settings)
    sinks = search_sinks(scorer, {k: c.heads for k, c in choices.items()}, start, settings)
    kept = {score.kind: score for score in sinks if score.is_kept}
    heads = {
        kind: HeadSelection(
            grounding=grouped(choice.heads), sink=kept[kind].rule if kind in kept else None
        )
        for kind, choice in choices.items()
    }
    threshold = next((score.threshold for score in kept.values()), None)
    start = start.model_copy(update={"sink_threshold": threshold})
    thresholds = sweep_thresholds(scorer, heads, start, settings)
    (best,) = [score for score in thresholds if score.is_kept]
    final = start.model_copy(
        update={
            "foreground_ratio_threshold": best.foreground_ratio_threshold,
            "background_ratio_threshold": best.background_ratio_threshold,
        }
    )
    counts = label_counts(scorer, heads, final)
    return LabelSearch(
        heads=heads,
        labels=final,
        head_scores={k: tuple(score_heads(scorer, final, maps.of_kind(k))) for k in kinds},
        selection={kind: choice.steps for kind, choice in choices.items()},
        sinks=tuple(sinks),
        thresholds=tuple(thresholds),
        denoising=tuple(score_denoising(maps, heads, final, maps.unseen)),
        quality={kind: counts.quality(maps.unseen & maps.of_kind(kind)) for kind in kinds},
        overall_quality=counts.quality(maps.unseen),
        training_labels=_training_labels(maps, heads, final),
    )


def _worst_f1(search: LabelSearch) -> float:
    """Label F1 of the worse half, with everything as chosen."""
    return min(half.f1 for s in search.thresholds if s.is_kept for half in s.halves)


def _training_labels(
    maps: AttentionMaps, heads: dict[QuestionKind, HeadSelection], labels: LabelSettings
) -> list[NDArray[np.int8]]:
    by_kind = {
        kind: make_pseudo_labels(
            mean_map(maps, head_set(selection.grounding)),
            None if selection.sink is None else sink_map(maps, selection.sink),
            labels,
            maps.image_sizes,
        ).labels
        for kind, selection in heads.items()
    }
    return [by_kind[kind][index] for index, kind in enumerate(maps.kinds)]
