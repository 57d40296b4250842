"""Platt calibration: recovers what made the data, never reorders, survives the edges."""

import numpy as np
import pytest
import torch

from sdrpn_core.rpn.score_calibration import ScoreCalibration, fit_platt
from sdrpn_core.rpn.threshold import calibration


def drawn(scale: float, offset: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and targets drawn with the probabilities that a known calibration gives them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, 20_000)
    return logits, rng.random(20_000) < 1 / (1 + np.exp(-(scale * logits + offset)))


@pytest.mark.parametrize(("scale", "offset"), [(0.3, -2.0), (1.0, 0.0), (2.5, 1.0)])
def test_finds_the_scale_and_offset_that_made_the_targets(scale: float, offset: float):
    fitted = fit_platt(*drawn(scale, offset))
    assert fitted.scale == pytest.approx(scale, rel=0.08)
    assert fitted.offset == pytest.approx(offset, abs=0.12)


def test_calibration_error_falls_on_cells_that_were_not_fitted():
    fitted = fit_platt(*drawn(0.3, -2.0, seed=0))
    logits, targets = drawn(0.3, -2.0, seed=1)
    plain = ScoreCalibration().probability(torch.from_numpy(logits)).numpy()
    calibrated = fitted.probability(torch.from_numpy(logits)).numpy()
    before, after = (calibration(scores, targets) for scores in (plain, calibrated))
    assert before.expected_calibration_error > 0.15
    assert after.expected_calibration_error < 0.02
    assert after.auc == pytest.approx(before.auc)


@pytest.mark.parametrize("value", [False, True])
def test_one_kind_of_cell_says_nothing(value: bool):
    assert fit_platt(np.arange(5.0), np.full(5, value)) == ScoreCalibration()


def test_perfect_separation_gives_a_finite_scale():
    logits = np.r_[np.full(50, -4.0), np.full(50, 4.0)]
    fitted = fit_platt(logits, logits > 0)
    assert 0.5 < fitted.scale < 3


FOREGROUND = np.random.default_rng(3).random(2000) < 0.2
NOISE = np.random.default_rng(4).normal(size=2000)


@pytest.mark.parametrize(
    "logits",
    [
        60 + 2 * NOISE + FOREGROUND,
        -800 + 2 * NOISE + FOREGROUND,
        1e6 * (NOISE + FOREGROUND),
        40 * (NOISE + FOREGROUND),
        1e20 * (NOISE + FOREGROUND),
        5 + NOISE / 2 - 3 * FOREGROUND,
        1e6 * (NOISE - FOREGROUND),
        np.full(2000, 100.0),
        np.zeros(2000),
    ],
    ids=["high", "low", "huge", "large", "largest", "reversed", "huge reversed", "equal", "zero"],
)
def test_whatever_the_logits_are_there_is_as_much_foreground_as_there_is(
    logits: np.ndarray,
):
    """Saturated ones were an error of linear algebra at the end of a training; where the scale was
    held, the offset was that of another scale, and every cell was foreground."""
    fitted = fit_platt(logits, FOREGROUND)
    probability = fitted.probability(torch.from_numpy(logits))
    assert float(probability.mean()) == pytest.approx(FOREGROUND.mean(), abs=0.002)


@pytest.mark.parametrize(("factor", "shift"), [(1e3, 0.0), (1e3, 7e5), (1.0, 300.0)])
def test_another_unit_of_the_logits_gives_the_same_probabilities(factor: float, shift: float):
    logits, targets = drawn(0.7, -1.0)
    usual, other = fit_platt(logits, targets), fit_platt(logits * factor + shift, targets)
    wanted = usual.probability(torch.from_numpy(logits))
    found = other.probability(torch.from_numpy(logits * factor + shift))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_logits_that_point_the_wrong_way_are_flattened_never_reversed():
    logits, targets = drawn(1.0, 0.0)
    assert fit_platt(-logits, targets).scale == pytest.approx(1e-3)
