"""Bootstrap intervals against scipy's, and their degenerate cases."""

import numpy as np
import pytest
from scipy import stats

from sdrpn_core import statistics
from sdrpn_core.statistics import (
    difference_interval,
    difference_p_value,
    mean_interval,
    recovered_share_interval,
)

OPTIONS = {"num_resamples": 4000, "seed": 3}


def outcomes(seed: int, share: float, count: int = 120) -> np.ndarray:
    return (np.random.default_rng(seed).random(count) < share).astype(np.float64)


def test_mean_interval_agrees_with_scipy() -> None:
    scores = outcomes(0, 0.4)
    found = mean_interval(scores, **OPTIONS)
    wanted = stats.bootstrap(
        (scores,), np.mean, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    assert found.value == scores.mean()
    assert found.low == pytest.approx(wanted.low, abs=0.012)
    assert found.high == pytest.approx(wanted.high, abs=0.012)


def test_difference_is_paired() -> None:
    """Two methods that fail on the same documents: pairing must narrow the interval."""
    baseline = outcomes(1, 0.5)
    scores = np.where(np.arange(120) < 6, 1.0, baseline)
    found = difference_interval(scores, baseline, **OPTIONS)
    wanted = stats.bootstrap(
        (scores, baseline),
        lambda a, b, axis: (a - b).mean(axis=axis),
        paired=True,
        n_resamples=4000,
        method="percentile",
        vectorized=True,
        rng=1,
    ).confidence_interval
    assert found.low == pytest.approx(wanted.low, abs=0.01)
    assert found.high == pytest.approx(wanted.high, abs=0.01)
    assert found.high - found.low < 0.1


def test_recovered_share_agrees_with_scipy() -> None:
    baseline, scores, oracle = outcomes(2, 0.2), outcomes(3, 0.6), outcomes(4, 0.9)
    found = recovered_share_interval(scores, baseline, oracle, **OPTIONS)
    wanted = stats.bootstrap(
        (scores, baseline, oracle),
        lambda a, b, c, axis: (a - b).mean(axis=axis) / (c - b).mean(axis=axis),
        paired=True,
        n_resamples=4000,
        method="percentile",
        vectorized=True,
        rng=1,
    ).confidence_interval
    assert found is not None
    gain, possible = scores.mean() - baseline.mean(), oracle.mean() - baseline.mean()
    assert found.value == pytest.approx(gain / possible)
    assert found.low == pytest.approx(wanted.low, abs=0.02)
    assert found.high == pytest.approx(wanted.high, abs=0.02)


def test_share_of_no_possible_gain_is_undefined() -> None:
    same = outcomes(5, 0.5)
    assert recovered_share_interval(same, same, same, **OPTIONS) is None
    assert recovered_share_interval(same, same, same - 0.5, **OPTIONS) is None


def test_resamples_without_possible_gain_are_left_out() -> None:
    """One document of eight can gain: a third of the resamples do not draw it."""
    baseline, oracle = np.zeros(8), np.eye(8)[0]
    found = recovered_share_interval(oracle, baseline, oracle, **OPTIONS)
    assert found is not None
    assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)


def test_constant_scores_have_no_width() -> None:
    found = mean_interval(np.zeros(5), **OPTIONS)
    assert (found.low, found.value, found.high) == (0.0, 0.0, 0.0)


def test_single_document() -> None:
    found = mean_interval(np.array([1.0]), **OPTIONS)
    assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("won", "p_value"), [(1, 1.0), (2, 0.5), (6, 2**-5)])
def test_few_documents_were_proof(won: int, p_value: float) -> None:
    """All resamples of a single document that is won are won: p was 2 / 1001 of any 1,000."""
    scores = np.concatenate([np.ones(won), np.zeros(3)])
    assert difference_p_value(scores, np.zeros(won + 3), **OPTIONS) >= p_value
    assert difference_p_value(scores[:won], np.zeros(won), **OPTIONS) == p_value


def test_no_document_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_interval(np.array([]), **OPTIONS)


def test_documents_that_cannot_be_paired_are_an_error() -> None:
    with pytest.raises(ValueError, match="pair"):
        difference_interval(np.zeros(3), np.zeros(4), **OPTIONS)
    with pytest.raises(ValueError, match="pair"):
        recovered_share_interval(np.zeros(3), np.zeros(3), np.zeros(4), **OPTIONS)


def test_seed_decides_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = outcomes(6, 0.3)
    whole = mean_interval(scores, num_resamples=500, seed=1)
    assert mean_interval(scores, num_resamples=500, seed=1) == whole
    assert mean_interval(scores, num_resamples=500, seed=2) != whole
    monkeypatch.setattr(statistics, "_MAX_DRAWN", 7 * len(scores))
    blocks = list(statistics._resamples(len(scores), 500, 1))
    assert {len(block) for block in blocks} == {7, 500 % 7}
    assert sum(map(len, blocks)) == 500
    in_blocks = mean_interval(scores, num_resamples=500, seed=1)
    assert in_blocks.low == pytest.approx(whole.low, abs=0.02)
