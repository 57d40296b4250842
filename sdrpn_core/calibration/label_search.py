"""From attention maps to grounding heads, sink rule and label thresholds, with or without boxes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_contracts.calibration import CalibrationSettings
from data_contracts.enums import QuestionKind
from data_contracts.label_settings import LabelSettings
from data_contracts.profiles import HeadSelection
from sdrpn_core.attention.sinks import sink_map
from sdrpn_core.calibration.examples import AttentionMaps
from sdrpn_core.calibration.heads import SelectionStep, select_heads_by_kind
from sdrpn_core.calibration.scoring import LabelCounts, LabelQuality, LabelScorer, grouped
from sdrpn_core.calibration.sink_search import SinkScore, search_sinks
from sdrpn_core.calibration.thresholds import ThresholdScore, label_counts, sweep_thresholds
from sdrpn_core.calibration.unsupervised import (
    UnsupervisedScore,
    massive_sinks,
    score_unsupervised,
    select_unsupervised,
)
from sdrpn_core.pseudo_labels import make_pseudo_labels


@dataclass(frozen=True)
class LabelChoice:
    """What a profile says about labels."""

    heads: dict[QuestionKind, HeadSelection]
    labels: LabelSettings

    def counts(self, scorer: LabelScorer) -> LabelCounts:
        """Labels that it gives, counted against true boxes."""
        return label_counts(scorer, self.heads, self.labels)

    def training_labels(self, maps: AttentionMaps) -> list[NDArray[np.int8]]:
        """(h, w) pseudo-label of every question, in order."""
        by_kind = {
            kind: make_pseudo_labels(
                maps.mean_of_heads(selection.grounding),
                None if selection.sink is None else sink_map(selection.sink, maps),
                self.labels,
                maps.image_sizes,
            ).labels
            for kind, selection in self.heads.items()
        }
        return [by_kind[kind][index] for index, kind in enumerate(maps.kinds)]


@dataclass(frozen=True)
class LabelSearch:
    """A choice made with boxes, and every score on the way."""

    choice: LabelChoice
    selection: dict[QuestionKind, tuple[SelectionStep, ...]]
    sinks: tuple[SinkScore, ...]
    thresholds: tuple[ThresholdScore, ...]


@dataclass(frozen=True)
class UnsupervisedSearch:
    """A choice made without boxes, and every score on the way."""

    choice: LabelChoice
    scores: dict[QuestionKind, tuple[UnsupervisedScore, ...]]


def kinds_of(maps: AttentionMaps) -> list[QuestionKind]:
    """Kinds of question that were asked, in their usual order."""
    return [kind for kind in QuestionKind if maps.of_kind(kind).any()]


def search_labels(
    scorer: LabelScorer, labels: LabelSettings, settings: CalibrationSettings
) -> LabelSearch:
    """Find heads, then sinks, then thresholds, by the quality of the labels they give.

    Where the thresholds change, heads and sinks are looked for once more under the new ones.

    Args:
        scorer: of the maps.
        labels: label settings to start from; the sink threshold is set by what is found.
        settings: what to try.
    """
    first = _search_once(scorer, labels, settings)
    found = first.choice.labels
    if found.model_copy(update={"sink_threshold": labels.sink_threshold}) == labels:
        return first
    again = _search_once(scorer, found, settings)
    return again if _worst_f1(again) > _worst_f1(first) else first


def search_unsupervised(
    maps: AttentionMaps, labels: LabelSettings, settings: CalibrationSettings
) -> UnsupervisedSearch:
    """Find heads and sinks by attention alone; thresholds stay as they are.

    Only the scenes that choose are looked at, so that quality compares with the other method's.
    """
    scores = {
        kind: tuple(score_unsupervised(maps, maps.of_kind(kind) & ~maps.unseen, settings))
        for kind in kinds_of(maps)
    }
    sink = massive_sinks(maps, ~maps.unseen)
    heads = {
        kind: HeadSelection(
            grounding=grouped(select_unsupervised(found, settings.num_unsupervised_heads)),
            sink=sink,
        )
        for kind, found in scores.items()
    }
    return UnsupervisedSearch(LabelChoice(heads, _with_sinks(labels, heads)), scores)


def _search_once(
    scorer: LabelScorer, labels: LabelSettings, settings: CalibrationSettings
) -> LabelSearch:
    start = labels.model_copy(update={"sink_threshold": None})
    choices = select_heads_by_kind(scorer, start, kinds_of(scorer.maps), settings)
    sinks = search_sinks(scorer, {k: c.heads for k, c in choices.items()}, start, settings)
    kept = {score.kind: score.rule for score in sinks if score.is_kept}
    heads = {
        kind: HeadSelection(grounding=grouped(choice.heads), sink=kept.get(kind))
        for kind, choice in choices.items()
    }
    start = _with_sinks(start, heads)
    thresholds = sweep_thresholds(scorer, heads, start, settings)
    (best,) = [score for score in thresholds if score.is_kept]
    final = best.applied_to(start)
    return LabelSearch(
        choice=LabelChoice(heads, final),
        selection={kind: choice.steps for kind, choice in choices.items()},
        sinks=tuple(sinks),
        thresholds=tuple(thresholds),
    )


def _with_sinks(
    labels: LabelSettings, heads: Mapping[QuestionKind, HeadSelection]
) -> LabelSettings:
    """Sink rules bring their own thresholds; without any, no threshold is needed."""
    has_sinks = any(selection.sink is not None for selection in heads.values())
    return labels.model_copy(update={"sink_threshold": 1.0 if has_sinks else None})


def _worst_f1(search: LabelSearch) -> float:
    """Label F1 of the worse half, with everything as chosen."""
    return min(half.f1 for s in search.thresholds if s.is_kept for half in s.halves)


def unseen_quality(
    counts: LabelCounts, maps: AttentionMaps
) -> tuple[dict[QuestionKind, LabelQuality], LabelQuality]:
    """Label quality on the unseen scenes, per kind and overall."""
    by_kind = {k: counts.quality(maps.unseen & maps.of_kind(k)) for k in kinds_of(maps)}
    return by_kind, counts.quality(maps.unseen)
