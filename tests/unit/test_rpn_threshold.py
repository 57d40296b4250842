"""Threshold choice and cell figures, against counting by hand and scipy."""

import numpy as np
import pytest
import torch
from scipy import stats

from data_contracts.enums import RoiLabel
from data_contracts.label_settings import REGION_PRESETS, RegionSettings
from data_contracts.training import BceLoss
from sdrpn_core.regions import propose_regions
from sdrpn_core.rpn.threshold import (
    CANDIDATES,
    CellQuality,
    best_point,
    calibration,
    cell_quality,
    smoothed_scores,
)
from sdrpn_core.rpn.validation import ValidationPrediction, tune_scores

SCORES = np.array([0.9, 0.8, 0.6, 0.4, 0.3, 0.1], dtype=np.float32)
TARGETS = np.array([True, True, False, True, False, False])


def test_quality_by_hand() -> None:
    quality = cell_quality(SCORES, TARGETS, 0.5)
    assert (quality.precision, quality.recall) == pytest.approx((2 / 3, 2 / 3))
    assert quality.f1 == pytest.approx(2 / 3)


def test_quality_without_any_chosen_cell_is_zero() -> None:
    quality = cell_quality(SCORES, TARGETS, 0.95)
    assert (quality.precision, quality.recall, quality.f1) == (0, 0, 0)


def test_best_point_is_that_of_the_lowest_threshold_of_equals() -> None:
    sweep = [cell_quality(SCORES, TARGETS, at) for at in (0.05, 0.35, 0.38, 0.5, 0.7)]
    assert [round(point.f1, 3) for point in sweep] == [0.667, 0.857, 0.857, 0.667, 0.8]
    assert best_point(sweep).threshold == 0.35


def test_candidates_are_ordered_and_cover_the_published_thresholds() -> None:
    assert list(CANDIDATES) == sorted(set(CANDIDATES))
    assert {0.03, 0.05, 0.1, 0.15, 0.175} <= set(CANDIDATES)


@pytest.mark.parametrize("decimals", [8, 1], ids=["no ties", "ties"])
def test_auc_equals_the_mann_whitney_statistic(decimals: int) -> None:
    rng = np.random.default_rng(0)
    targets = rng.random(300) < 0.3
    scores = (rng.random(300) * 0.7 + targets * 0.3).round(decimals).astype(np.float32)
    statistic = stats.mannwhitneyu(scores[targets], scores[~targets]).statistic
    expected = statistic / (targets.sum() * (~targets).sum())
    assert calibration(scores, targets).auc == pytest.approx(expected, abs=1e-9)


def test_auc_of_a_single_class_is_chance() -> None:
    assert calibration(SCORES, np.ones(6, dtype=bool)).auc == 0.5


def test_calibration_error_by_hand() -> None:
    # Bins of width 1/15: the first with one true, the last but two with two.
    probability = np.float32([0.01, 0.06, 0.81, 0.82, 0.85])
    targets = np.array([0, 1, 1, 0, 1], dtype=bool)
    expected = (abs(0.07 - 1) + abs(2.48 - 2)) / 5
    found = calibration(probability, targets).expected_calibration_error
    assert found == pytest.approx(expected, abs=1e-6)


def test_honest_probabilities_have_no_calibration_error() -> None:
    probability = np.repeat(np.float32([0.25, 1.0]), 4)
    targets = np.array([1, 0, 0, 0, 1, 1, 1, 1], dtype=bool)
    assert calibration(probability, targets).expected_calibration_error == 0


@pytest.mark.parametrize("name", sorted(REGION_PRESETS))
@pytest.mark.parametrize("is_peak_ratio", [False, True])
@pytest.mark.parametrize("num_padding_rows", [0, 2])
def test_threshold_means_the_same_to_region_proposal(
    name: str, is_peak_ratio: bool, num_padding_rows: int
) -> None:
    """A region exists exactly where the smoothed scores in the image exceed the threshold.

    The padding is the brightest part of the map: it was what thresholds in training were shares of.
    """
    settings = RegionSettings.preset(name).model_copy(
        update={"threshold_is_peak_ratio": is_peak_ratio, "min_component_cells": 1}
    )
    probability = torch.zeros(8, 8)
    probability[3, 4], probability[3, 5] = 0.8, 0.7
    content = torch.ones(8, 8, dtype=torch.bool)
    content[8 - num_padding_rows :] = False
    probability[~content] = 1.0
    top = float(smoothed_scores(probability, settings, content)[content].max())
    assert propose_regions(probability, top - 1e-4, settings, content.numpy())
    assert not propose_regions(probability, top + 1e-4, settings, content.numpy())


def test_cells_of_padding_are_no_part_of_the_sweep() -> None:
    """Labels call padding background; regions are never looked for there."""
    logits = torch.full((4, 4), -4.0)
    labels = torch.zeros(4, 4, dtype=torch.int8)
    logits[1, 1:3], labels[1, 1:3] = 1.0, int(RoiLabel.FOREGROUND)
    content = torch.ones(4, 4, dtype=torch.bool)
    content[3] = False
    logits[3] = 8.0  # louder than the region
    settings = RegionSettings(blur_sigma=None, threshold_is_peak_ratio=True)

    def tuned(mask: torch.Tensor) -> CellQuality:
        prediction = ValidationPrediction("key", logits, labels, mask)
        return tune_scores([prediction], BceLoss(), settings).summary.chosen

    inside = tuned(content)
    assert (inside.precision, inside.recall) == (1.0, 1.0)
    assert tuned(torch.ones_like(content)).precision < 1
