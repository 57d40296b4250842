"""Search for a sink rule: signals and thresholds whose cells are better left out of the labels.

A sink is a cell that gets attention whatever the question. Candidates are the mean of every layer,
the single heads that tell wrong foreground from right best, and every layer's hidden-state norm and
sink dimensions, without the signals that change with the question. The best rule of every kind of
signal is measured, and the best two terms together. A rule is taken only if both halves of the
scenes gain from it; no rule is a result too, and the usual one for models whose grounding heads are
clean.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data_contracts.base import Settings
from data_contracts.calibration import CalibrationSettings
from data_contracts.enums import QuestionKind
from data_contracts.label_settings import LabelSettings
from data_contracts.sink_rules import (
    SinkCombination,
    SinkHeads,
    SinkLayerMean,
    SinkSignal,
    SinkTerm,
)
from sdrpn_core.attention.sinks import sink_map
from sdrpn_core.calibration.examples import AttentionMaps, Head
from sdrpn_core.calibration.scoring import (
    HeadSet,
    LabelQuality,
    LabelScorer,
    Mask,
    mean_map,
)


class SinkScore(Settings):
    """What one rule does to the labels of one kind of question."""

    kind: QuestionKind
    rule: SinkCombination
    gain: float
    """Foreground F1 with the rule minus without, on the half that gains less."""
    sink_ratio: float
    """Share of the unseen scenes' cells that the rule calls sinks."""
    without: LabelQuality
    """Labels of the unseen scenes without any sink rule."""
    with_rule: LabelQuality
    """Labels of the unseen scenes with this rule."""
    question_dependence: float | None
    """1 minus the correlation of the signal between questions about the same image: near 0 for a
    true sink; the larger of two terms'. None where no image was asked about twice."""
    is_kept: bool = False


class _Candidate(Settings):
    """A term that may be part of a rule."""

    term: SinkTerm
    question_dependence: float | None


def search_sinks(
    scorer: LabelScorer,
    heads: Mapping[QuestionKind, HeadSet],
    labels: LabelSettings,
    settings: CalibrationSettings,
) -> list[SinkScore]:
    """For each kind of question the best rule of every kind of signal, and of two terms together.

    Args:
        scorer: of the maps.
        heads: grounding heads.
        labels: settings; their sink threshold is not used.
        settings: what to try.
    """
    labels = labels.model_copy(update={"sink_threshold": 1.0})
    scores: list[SinkScore] = []
    for kind in heads:
        search = _Search(scorer, kind, heads[kind], labels, settings)
        scores += search.kept(search.scores())
    return scores


class _Search:
    """The search for one kind of question."""

    def __init__(
        self,
        scorer: LabelScorer,
        kind: QuestionKind,
        heads: HeadSet,
        labels: LabelSettings,
        settings: CalibrationSettings,
    ) -> None:
        self.scorer, self.kind, self.heads, self.labels = scorer, kind, heads, labels
        self.settings = settings
        of_kind = scorer.maps.of_kind(kind)
        self.parts = [half & of_kind for half in scorer.maps.halves]
        self.unseen = scorer.maps.unseen & of_kind
        self.before = scorer.foreground(heads, labels)

    def scores(self) -> list[SinkScore]:
        """Best rule of each kind of signal, then the best ``any`` and ``all`` of two terms."""
        groups: dict[str, list[_Candidate]] = {}
        for candidate in self._candidates():
            groups.setdefault(candidate.term.signal.rule, []).append(candidate)
        best = [max(group, key=lambda c: self._gain(_rule([c]))) for group in groups.values()]
        chosen = [[candidate] for candidate in best]
        if best:
            first = max(best, key=lambda c: self._gain(_rule([c])))
            others = [c for group in groups.values() for c in group if not _is_same(c, first)]
            for combine in ("any", "all") if others else ():
                second = max(others, key=lambda c: self._gain(_rule([first, c], combine)))
                chosen.append([first, second])
        combinations = ["any"] * (len(best) + 1) + ["all"]
        return [self._score(c, how) for c, how in zip(chosen, combinations, strict=False)]

    def kept(self, scores: Sequence[SinkScore]) -> list[SinkScore]:
        """Mark the best rule if it helps; two terms must be better than one by as much again."""

        def worth(score: SinkScore) -> float:
            return score.gain - self.settings.min_gain * len(score.rule.terms)

        best = max(scores, key=worth, default=None)
        return [
            score.model_copy(update={"is_kept": score is best and worth(score) >= 0})
            for score in scores
        ]

    def _gain(self, rule: SinkCombination) -> float:
        counts = self.scorer.foreground(self.heads, self.labels, rule)
        return counts.gain(self.before, self.parts)

    def _score(self, candidates: Sequence[_Candidate], combine: str) -> SinkScore:
        rule = _rule(candidates, combine)
        found = [c.question_dependence for c in candidates]
        known = [value for value in found if value is not None]
        sinks = sink_map(rule, self.scorer.maps).numpy()[self.unseen] >= 1.0
        return SinkScore(
            kind=self.kind,
            rule=rule,
            gain=self._gain(rule),
            sink_ratio=float(sinks.mean()) if sinks.size else 0.0,
            without=self.scorer.labels(self.heads, self.labels).quality(self.unseen),
            with_rule=self.scorer.labels(self.heads, self.labels, rule).quality(self.unseen),
            question_dependence=max(known) if known else None,
        )

    def _candidates(self) -> list[_Candidate]:
        """Terms whose signal does not follow the question."""
        maps, settings = self.scorer.maps, self.settings
        signals: list[SinkSignal] = [SinkLayerMean(layer=layer) for layer in maps.layers]
        chosen = maps.of_kind(self.kind) & ~maps.unseen
        suspects = _suspect_heads(
            maps, self.heads, chosen, self.labels, settings.num_sink_candidates
        )
        signals += [SinkHeads(heads={layer: (head,)}) for layer, head in suspects]
        signals += maps.hidden
        images = maps.image_indices[chosen]
        rated = [
            (s, question_dependence(sink_map(s, maps).numpy()[chosen], images)) for s in signals
        ]
        limit = settings.max_question_dependence
        steady = [(s, found) for s, found in rated if found is None or found <= limit]
        return [
            _Candidate(term=SinkTerm(signal=signal, threshold=threshold), question_dependence=found)
            for signal, found in steady
            for threshold in sink_thresholds(signal, maps, settings)
        ]


def sink_thresholds(
    signal: SinkSignal, maps: AttentionMaps, settings: CalibrationSettings
) -> list[float]:
    """Thresholds to try for a signal; attention's are multiples of an even spread, two digits."""
    match signal.rule:
        case "hidden_norm":
            return list(settings.sink_norms)
        case "dimensions":
            return list(settings.sink_values)
        case _:
            return [float(f"{level / maps.grid.num_cells:.1e}") for level in settings.sink_levels]


def _rule(candidates: Sequence[_Candidate], combine: str = "any") -> SinkCombination:
    return SinkCombination.model_validate(
        {"rule": combine, "terms": tuple(candidate.term for candidate in candidates)}
    )


def _is_same(one: _Candidate, other: _Candidate) -> bool:
    return one.term.signal == other.term.signal


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
    every_head = maps.heads
    suspects = (every_head[index] for index in order.tolist())
    return [head for head in suspects if head not in heads][:count]


def question_dependence(
    signal: NDArray[np.float32], image_indices: NDArray[np.int64]
) -> float | None:
    """1 minus the correlation of (N, h, w) maps between questions about the same image.

    None where no image was asked about twice, or all maps are constant.
    """
    correlations = []
    for image in np.unique(image_indices):
        first, *others = signal[image_indices == image]
        correlations += [_correlation(first.ravel(), other.ravel()) for other in others]
    finite = [value for value in correlations if np.isfinite(value)]
    return 1.0 - float(np.mean(finite)) if finite else None


def _correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    if one.std() == 0 or other.std() == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])
