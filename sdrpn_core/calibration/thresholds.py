"""Sweep of the label thresholds: the paper's are kept unless others are clearly better."""

from collections.abc import Mapping

from data_contracts.base import Settings
from data_contracts.calibration import CalibrationSettings
from data_contracts.enums import QuestionKind
from data_contracts.label_settings import LabelSettings
from data_contracts.profiles import HeadSelection
from sdrpn_core.calibration.scoring import LabelCounts, LabelQuality, LabelScorer, head_set


class ThresholdScore(Settings):
    """Labels of all questions with one pair of thresholds and one choice of regions."""

    foreground_ratio_threshold: float
    background_ratio_threshold: float
    strongest_region_only: bool = False
    halves: tuple[LabelQuality, ...]
    """Quality of the labels on each of the halves that choose."""
    unseen: LabelQuality
    """Quality of the labels on the unseen scenes."""
    is_kept: bool = False

    def applied_to(self, labels: LabelSettings) -> LabelSettings:
        """Label settings with what was tried here."""
        return labels.model_copy(update={name: getattr(self, name) for name in _TRIED})


_TRIED = ("foreground_ratio_threshold", "background_ratio_threshold", "strongest_region_only")


def sweep_thresholds(
    scorer: LabelScorer,
    heads: Mapping[QuestionKind, HeadSelection],
    labels: LabelSettings,
    settings: CalibrationSettings,
) -> list[ThresholdScore]:
    """Score foreground rules, then background thresholds under the one that is kept."""
    tried = [
        with_foreground(labels, threshold, strongest_only)
        for strongest_only in (False, True)
        for threshold in sorted(
            {*settings.foreground_thresholds, labels.foreground_ratio_threshold}
        )
    ]
    sweep = [_score(scorer, heads, variant) for variant in tried]
    usual = sweep[tried.index(labels)]
    kept = _better_foreground(sweep, usual, settings)
    chosen = kept.applied_to(labels)
    background = [
        chosen.model_copy(update={"background_ratio_threshold": threshold})
        for threshold in settings.background_thresholds
        if threshold <= chosen.foreground_ratio_threshold
    ]
    sweep += [_score(scorer, heads, variant) for variant in background if variant not in tried]
    return [score.model_copy(update={"is_kept": score is kept}) for score in sweep]


def with_foreground(labels: LabelSettings, threshold: float, strongest_only: bool) -> LabelSettings:
    """Label settings with another foreground rule; background stays below it."""
    return labels.model_copy(
        update={
            "foreground_ratio_threshold": threshold,
            "background_ratio_threshold": min(labels.background_ratio_threshold, threshold),
            "strongest_region_only": strongest_only,
        }
    )


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
    scorer: LabelScorer, heads: Mapping[QuestionKind, HeadSelection], labels: LabelSettings
) -> ThresholdScore:
    counts = label_counts(scorer, heads, labels)
    return ThresholdScore(
        halves=tuple(counts.quality(half) for half in scorer.maps.halves),
        unseen=counts.quality(scorer.maps.unseen),
        **{name: getattr(labels, name) for name in _TRIED},
    )


def _better_foreground(
    sweep: list[ThresholdScore], usual: ThresholdScore, settings: CalibrationSettings
) -> ThresholdScore:
    """The usual rule, or a clearly better one; precision comes first where it is too low."""
    is_usual_precise = _precision(usual) >= settings.min_precision
    precise = [score for score in sweep if _precision(score) >= settings.min_precision]
    candidates = precise or sweep
    best = max(candidates, key=lambda score: (_f1(score), score.foreground_ratio_threshold))
    gains = [new.f1 - old.f1 for new, old in zip(best.halves, usual.halves, strict=True)]
    is_clear = min(gains) >= settings.min_threshold_gain
    makes_precise = not is_usual_precise and bool(precise)
    return best if is_clear or makes_precise else usual


def _precision(score: ThresholdScore) -> float:
    return min(half.overlap_precision for half in score.halves)


def _f1(score: ThresholdScore) -> float:
    return min(half.f1 for half in score.halves)
