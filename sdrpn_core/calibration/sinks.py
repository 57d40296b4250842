"""Search for a sink rule: a signal and a threshold whose cells are better left out of the labels.

A sink is a cell that gets attention whatever the question. Candidates are the mean of every layer
and the single heads that tell wrong foreground from right best, without the signals that change
with the question; thresholds are multiples of evenly spread attention. A rule is taken only if both
halves of the scenes gain from it; no rule is a result too, and the usual one for models whose
grounding heads are clean.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data_contracts.base import Settings
from data_contracts.calibration import CalibrationSettings
from data_contracts.enums import QuestionKind
from data_contracts.label_settings import LabelSettings
from data_contracts.profiles import SinkHeads, SinkLayerMean, SinkRule
from sdrpn_core.calibration.examples import AttentionMaps
from sdrpn_core.calibration.scoring import Head, HeadSet, LabelScorer, Mask, mean_map, sink_map


class SinkScore(Settings):
    """What one rule does to the labels of one kind of question."""

    kind: QuestionKind
    rule: SinkRule
    threshold: float
    gain: float
    """Foreground F1 with the rule minus without, on the half that gains less."""
    unseen_f1_gain: float
    """The same on the unseen scenes."""
    unseen_precision_gain: float
    question_dependence: float | None
    """1 minus the correlation of the signal between questions about the same image: near 0 for a
    true sink. None where no image was asked about twice."""
    is_kept: bool = False


def search_sinks(
    scorer: LabelScorer,
    heads: Mapping[QuestionKind, HeadSet],
    labels: LabelSettings,
    settings: CalibrationSettings,
) -> list[SinkScore]:
    """Best rule of every kind at every threshold; the kept ones share one threshold.

    A profile has one sink threshold, so the kinds agree on the one with the largest gain overall.
    """
    thresholds = sink_thresholds(scorer.maps, settings)
    scores = [
        score
        for kind in heads
        for score in _best_rules(scorer, kind, heads[kind], labels, thresholds, settings)
    ]

    def total_gain(threshold: float) -> float:
        return sum(
            score.gain * int(scorer.maps.of_kind(score.kind).sum())
            for score in scores
            if score.threshold == threshold and score.gain >= settings.min_gain
        )

    chosen = max(thresholds, key=total_gain)
    return [
        score.model_copy(
            update={"is_kept": score.threshold == chosen and score.gain >= settings.min_gain}
        )
        for score in scores
    ]


def sink_thresholds(maps: AttentionMaps, settings: CalibrationSettings) -> list[float]:
    """Attention per cell at each of ``sink_levels``, to two digits."""
    return [float(f"{level / maps.grid.num_cells:.1e}") for level in settings.sink_levels]


def _best_rules(
    scorer: LabelScorer,
    kind: QuestionKind,
    heads: HeadSet,
    labels: LabelSettings,
    thresholds: Sequence[float],
    settings: CalibrationSettings,
) -> list[SinkScore]:
    """The best rule for one kind at each threshold; none if every signal follows the question."""
    maps = scorer.maps
    of_kind = maps.of_kind(kind)
    parts, unseen = [half & of_kind for half in maps.halves], maps.unseen & of_kind
    candidates = _candidates(maps, heads, of_kind & ~maps.unseen, labels, settings)
    before = scorer.foreground(heads, labels)
    scores = []
    for threshold in thresholds if candidates else ():
        tried = labels.model_copy(update={"sink_threshold": threshold})
        after, rule, dependence = max(
            ((scorer.foreground(heads, tried, rule), rule, d) for rule, d in candidates),
            key=lambda counted: counted[0].gain(before, parts),
        )
        scores.append(
            SinkScore(
                kind=kind,
                rule=rule,
                threshold=threshold,
                gain=after.gain(before, parts),
                unseen_f1_gain=after.gain(before, [unseen]),
                unseen_precision_gain=after.quality(unseen).precision
                - before.quality(unseen).precision,
                question_dependence=dependence,
            )
        )
    return scores


def _candidates(
    maps: AttentionMaps,
    heads: HeadSet,
    chosen: Mask,
    labels: LabelSettings,
    settings: CalibrationSettings,
) -> list[tuple[SinkRule, float | None]]:
    """Rules whose signal does not follow the question, with how much it does."""
    rules: list[SinkRule] = [SinkLayerMean(layer=layer) for layer in range(maps.response.shape[1])]
    suspects = _suspect_heads(maps, heads, chosen, labels, settings.num_sink_candidates)
    rules += [SinkHeads(heads={layer: (head,)}) for layer, head in suspects]
    candidates = [
        (rule, _question_dependence(maps, sink_map(maps, rule).numpy())) for rule in rules
    ]
    limit = settings.max_question_dependence
    return [(rule, found) for rule, found in candidates if found is None or found <= limit]


def _suspect_heads(
    maps: AttentionMaps, heads: HeadSet, chosen: Mask, labels: LabelSettings, count: int
) -> Sequence[Head]:
    """Heads with the most attention on wrong foreground as against the true region."""
    grounding = mean_map(maps, heads).numpy()
    peak = grounding.max(axis=(1, 2), keepdims=True)
    foreground = grounding > labels.foreground_ratio_threshold * peak
    wrong = (foreground & ~maps.inside)[chosen].reshape(int(chosen.sum()), -1)
    right = maps.inside[chosen].reshape(len(wrong), -1)
    flat = maps.response.flatten(3).numpy()[chosen]
    on_wrong = np.einsum("nlhc,nc->lh", flat, wrong) / max(int(wrong.sum()), 1)
    on_right = np.einsum("nlhc,nc->lh", flat, right) / max(int(right.sum()), 1)
    order = np.argsort(-(on_wrong / np.maximum(on_right, 1e-12)), axis=None, kind="stable")
    layers, indices = np.unravel_index(order, on_wrong.shape)
    pairs = zip(layers.tolist(), indices.tolist(), strict=True)
    return [head for head in pairs if head not in heads][:count]


def _question_dependence(maps: AttentionMaps, signal: NDArray[np.float32]) -> float | None:
    correlations = []
    for image in np.unique(maps.image_indices):
        first, *others = signal[maps.image_indices == image]
        correlations += [np.corrcoef(first.ravel(), other.ravel())[0, 1] for other in others]
    finite = [value for value in correlations if np.isfinite(value)]
    return 1.0 - float(np.mean(finite)) if finite else None
