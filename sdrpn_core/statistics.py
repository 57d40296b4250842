"""Bootstrap intervals over documents: percentile method, 95 %, seeded.

Documents are the unit of resampling. Comparisons resample documents, not methods, so that both
sides always answer the same ones (paired). Resamples are drawn in blocks to bound memory; the
blocks depend on the number of documents only, so a seed always gives the same intervals.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data_contracts.results import Interval

CONFIDENCE = 0.95

_MAX_DRAWN = 2_000_000
"""Indices held at a time."""

Scores = NDArray[np.float64]


def mean_interval(scores: Scores, *, num_resamples: int, seed: int) -> Interval:
    """Mean of per-document scores.

    Args:
        scores: (M,) at least one.
        num_resamples: bootstrap resamples.
        seed: of the resampling.
    """
    means = _resampled_means(scores, num_resamples, seed)
    return _interval(float(scores.mean()), means)


def difference_interval(
    scores: Scores, baseline: Scores, *, num_resamples: int, seed: int
) -> Interval:
    """Mean of ``scores - baseline``, paired.

    Args:
        scores: (M,) at least one.
        baseline: (M,) of the same documents in the same order.
        num_resamples: bootstrap resamples.
        seed: of the resampling.
    """
    return mean_interval(_gain(scores, baseline), num_resamples=num_resamples, seed=seed)


def difference_p_value(scores: Scores, baseline: Scores, *, num_resamples: int, seed: int) -> float:
    """Two-sided p-value of the mean of ``scores - baseline``, by the paired bootstrap.

    Twice the share of resamples on the rarer side of 0, resamples at 0 counting for both sides and
    the data themselves as one more of each; never 0, since so many resamples cannot tell. Nor can
    few documents, whose resamples all look alike: where either side wins K of them by chance, one
    of the two wins all with a probability of 2 ** (1 - K).
    Arguments as of ``difference_interval``.
    """
    gain = _gain(scores, baseline)
    means = _resampled_means(gain, num_resamples, seed)
    rarer = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p_value = max(2 * (rarer + 1) / (len(means) + 1), 2.0 ** (1 - np.count_nonzero(gain)))
    return float(min(1.0, p_value))


def recovered_share_interval(
    scores: Scores, baseline: Scores, oracle: Scores, *, num_resamples: int, seed: int
) -> Interval | None:
    """Gain over the baseline as a share of the oracle's gain, paired.

    Resamples in which the oracle gains nothing have no share and are left out.

    Args:
        scores: (M,) at least one.
        baseline: (M,) of the same documents in the same order.
        oracle: (M,) likewise.
        num_resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        None if the oracle gains nothing.
    """
    if not scores.shape == baseline.shape == oracle.shape:
        raise ValueError(f"cannot pair {len(scores)}, {len(baseline)} and {len(oracle)} documents")
    _check_length(scores)
    gain, possible = scores - baseline, oracle - baseline
    if possible.mean() <= 0:
        return None
    shares = []
    for drawn in _resamples(len(scores), num_resamples, seed):
        gains, possibles = gain[drawn].mean(axis=1), possible[drawn].mean(axis=1)
        shares.append(gains[possibles > 0] / possibles[possibles > 0])
    return _interval(float(gain.mean() / possible.mean()), np.concatenate(shares))


def _gain(scores: Scores, baseline: Scores) -> Scores:
    """(M,) score by score; both are of the same documents."""
    if scores.shape != baseline.shape:
        raise ValueError(f"cannot pair {len(scores)} with {len(baseline)} documents")
    return scores - baseline


def _resampled_means(values: Scores, num_resamples: int, seed: int) -> Scores:
    """Mean of each resample of (M,) values."""
    _check_length(values)
    drawn = _resamples(len(values), num_resamples, seed)
    return np.concatenate([values[rows].mean(axis=1) for rows in drawn])


def _resamples(num_documents: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Document indices of the resamples, in blocks of (K, M)."""
    rng = np.random.default_rng(seed)
    rows_per_block = max(_MAX_DRAWN // num_documents, 1)
    for start in range(0, num_resamples, rows_per_block):
        num_rows = min(rows_per_block, num_resamples - start)
        yield rng.integers(num_documents, size=(num_rows, num_documents))


def _interval(value: float, estimates: Scores) -> Interval:
    if not estimates.size:
        return Interval(value=value, low=value, high=value)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return Interval(value=value, low=float(low), high=float(high))


def _check_length(scores: Scores) -> None:
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"need one score per document and at least one, got {scores.shape}")


def median(values: Scores) -> float | None:
    """Median; None without values."""
    return float(np.median(values)) if len(values) else None


def finite(value: float) -> float | None:
    """None for NaN and infinities, which JSON lacks."""
    return value if math.isfinite(value) else None
