"""Cell-level quality of RoI probabilities, and the choice of one region threshold.

The threshold is chosen on the validation images of the training data, on maps smoothed just as
region proposal smooths them, of the cells where it looks for regions: those that show the image.
Ignored cells are no part of any figure.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from data_contracts.base import Settings
from data_contracts.label_settings import RegionSettings
from sdrpn_core.filters import gaussian_blur_3x3

CANDIDATES = (0.01, 0.02, 0.03, 0.05, 0.075, *(round(0.1 + 0.025 * i, 3) for i in range(33)))
"""Thresholds that are tried: fine where the published ones lie, then steps of 0.025 up to 0.9."""

NUM_BINS = 15
"""Of equal width, that the calibration error is made of."""


class CellQuality(Settings):
    """Agreement of thresholded cells with pseudo-labels."""

    threshold: float = Field(ge=0, le=1)
    precision: float
    recall: float
    f1: float


class Calibration(Settings):
    """Ranking quality and honesty of raw probabilities."""

    auc: float
    """Chance that a foreground cell scores above a background cell; 0.5 where one kind lacks."""
    expected_calibration_error: float
    """Mean gap between predicted and true share of foreground, over equal-width bins."""


def smoothed_scores(probability: Tensor, settings: RegionSettings, content: Tensor) -> Tensor:
    """Map that ``regions.propose_regions`` compares with its threshold, in the image.

    Args:
        probability: (h, w) in [0, 1].
        settings: region settings.
        content: (h, w) bool, cells that show the image. A peak in the padding is no measure for
            them.
    """
    if settings.blur_sigma is not None:
        probability = gaussian_blur_3x3(probability, settings.blur_sigma)
    if settings.threshold_is_peak_ratio:
        peak = (probability * content).max()
        probability = probability / peak.clamp_min(torch.finfo(torch.float32).tiny)
    return probability


def cell_quality(
    scores: NDArray[np.float32], targets: NDArray[np.bool_], threshold: float
) -> CellQuality:
    """Precision, recall and F1 of ``scores > threshold``; 0 where undefined.

    Args:
        scores: (M,) of valid cells.
        targets: (M,) True for foreground.
        threshold: in the unit of the scores.
    """
    chosen = scores > threshold
    num_hits = int((chosen & targets).sum())
    num_chosen, num_targets = int(chosen.sum()), int(targets.sum())
    return CellQuality(
        threshold=threshold,
        precision=num_hits / max(num_chosen, 1),
        recall=num_hits / max(num_targets, 1),
        f1=2 * num_hits / max(num_chosen + num_targets, 1),
    )


def best_point(sweep: Sequence[CellQuality]) -> CellQuality:
    """The one with the best F2; of equals that of the lowest threshold.

    F2 counts recall over precision: a crop that is too wide costs some resolution, one that misses
    the region costs the answer.
    """
    return max(sweep, key=lambda point: (_f2(point), -point.threshold))


def _f2(point: CellQuality) -> float:
    """5PR / (4P + R); 0 where undefined."""
    weighted = 4 * point.precision + point.recall
    return 5 * point.precision * point.recall / weighted if weighted else 0.0


def calibration(probability: NDArray[np.float32], targets: NDArray[np.bool_]) -> Calibration:
    """AUC and expected calibration error of valid cells, (M,) each."""
    return Calibration(
        auc=_auc(probability, targets),
        expected_calibration_error=_calibration_error(probability, targets),
    )


def _auc(scores: NDArray[np.float32], targets: NDArray[np.bool_]) -> float:
    """Mann-Whitney statistic; ties count half."""
    num_positive = int(targets.sum())
    num_negative = targets.size - num_positive
    if num_positive == 0 or num_negative == 0:
        return 0.5
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # Ranks start at 1; every member of a group of equals takes the group's mean rank.
    mean_ranks = counts.cumsum() - (counts - 1) / 2
    rank_sum = float(mean_ranks[group][targets].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def _calibration_error(probability: NDArray[np.float32], targets: NDArray[np.bool_]) -> float:
    bins = np.minimum((probability * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    predicted = np.bincount(bins, weights=probability, minlength=NUM_BINS)
    observed = np.bincount(bins, weights=targets, minlength=NUM_BINS)
    return float(np.abs(predicted - observed).sum() / max(targets.size, 1))
