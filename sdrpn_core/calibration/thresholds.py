"""Sweep of the label thresholds: the paper's are kept unless others are clearly better."""

from collections.abc import Mapping

from data_contracts.base import Settings
from data_contracts.calibration import CalibrationSettings
from data_contracts.enums import QuestionKind
from data_contracts.label_settings import LabelSettings
from data_contracts.profiles import HeadSelection
from sdrpn_core.calibration.scoring import LabelCounts, LabelQuality, LabelScorer, head_set


class ThresholdScore(Settings):
    """Labels of all questions with one pair of thresholds."""

    foreground_ratio_threshold: float
    background_ratio_threshold: float
    halves: tuple[LabelQuality, ...]
    """On the halves that choose."""
    unseen: LabelQuality
    """On the unseen scenes."""
    is_kept: bool = False


def sweep_thresholds(
    scorer: LabelScorer,
    heads: Mapping[QuestionKind, HeadSelection],
    labels: LabelSettings,
    settings: CalibrationSettings,
) -> list[ThresholdScore]:
    """Score foreground thresholds, then background thresholds under the one that is kept."""
    before = labels.foreground_ratio_threshold, labels.background_ratio_threshold
    pairs = [(fg, min(before[1], fg)) for fg in {*settings.foreground_thresholds, before[0]}]
    sweep = [_score(scorer, heads, labels, pair) for pair in sorted(pairs)]
    kept = _better_foreground(sweep, before[0], settings)
    tried = {
        (score.foreground_ratio_threshold, score.background_ratio_threshold) for score in sweep
    }
    pairs = [(kept, bg) for bg in settings.background_thresholds if bg <= kept]
    sweep += [_score(scorer, heads, labels, pair) for pair in sorted(set(pairs) - tried)]
    return [
        score.model_copy(
            update={
                "is_kept": score.foreground_ratio_threshold == kept
                and score.background_ratio_threshold == min(before[1], kept)
            }
        )
        for score in sweep
    ]


def label_counts(
    scorer: LabelScorer, heads: Mapping[QuestionKind, HeadSelection], labels: LabelSettings
) -> LabelCounts:
    """Counts with each question labelled by the heads of its own kind."""
    by_kind = {
        kind: scorer.labels(head_set(selection.grounding), labels, selection.sink)
        for kind, selection in heads.items()
    }
    return LabelCounts.merged([by_kind[kind] for kind in scorer.maps.kinds])


def _score(
    scorer: LabelScorer,
    heads: Mapping[QuestionKind, HeadSelection],
    labels: LabelSettings,
    pair: tuple[float, float],
) -> ThresholdScore:
    foreground, background = pair
    tried = labels.model_copy(
        update={
            "foreground_ratio_threshold": foreground,
            "background_ratio_threshold": background,
        }
    )
    counts = label_counts(scorer, heads, tried)
    return ThresholdScore(
        foreground_ratio_threshold=foreground,
        background_ratio_threshold=background,
        halves=tuple(counts.quality(half) for half in scorer.maps.halves),
        unseen=counts.quality(scorer.maps.unseen),
    )


def _better_foreground(
    sweep: list[ThresholdScore], usual: float, settings: CalibrationSettings
) -> float:
    """The usual threshold, or a clearly better one; precision comes first where it is too low."""
    (known,) = [score for score in sweep if score.foreground_ratio_threshold == usual]
    is_known_precise = _precision(known) >= settings.min_precision
    precise = [score for score in sweep if _precision(score) >= settings.min_precision]
    candidates = precise or sweep
    best = max(candidates, key=lambda score: (_f1(score), score.foreground_ratio_threshold))
    gains = [new.f1 - old.f1 for new, old in zip(best.halves, known.halves, strict=True)]
    is_clear = min(gains) >= settings.min_threshold_gain
    makes_precise = not is_known_precise and bool(precise)
    return best.foreground_ratio_threshold if is_clear or makes_precise else usual


def _precision(score: ThresholdScore) -> float:
    return min(half.touch_precision for half in score.halves)


def _f1(score: ThresholdScore) -> float:
    return min(half.f1 for half in score.halves)
