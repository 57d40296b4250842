"""What an RPN in training is worth on validation images, and what is tuned on them.

Shape legend: (h, w) the grid of one example, M cells that are not ignored, over all examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_contracts.enums import RoiLabel
from data_contracts.label_settings import RegionSettings
from data_contracts.training import RoiLoss
from sdrpn_core.rpn.config import ValidationSummary
from sdrpn_core.rpn.loss import roi_loss, valid_cells
from sdrpn_core.rpn.score_calibration import ScoreCalibration, fit_platt
from sdrpn_core.rpn.threshold import (
    CANDIDATES,
    Calibration,
    best_point,
    calibration,
    cell_quality,
    smoothed_scores,
)


@dataclass(frozen=True)
class ValidationPrediction:
    """Logits and labels of one validation example, (h, w) each, on the CPU."""

    image_key: str
    logits: Tensor
    labels: Tensor
    content: Tensor
    """Bool: cells that show any of the image, the others are padding."""

    @property
    def inside(self) -> "ValidationPrediction":
        """The same with the padding ignored, as region proposal ignores it."""
        labels = self.labels.where(self.content, int(RoiLabel.IGNORE))
        return replace(self, labels=labels)


@dataclass(frozen=True)
class TunedScores:
    """How logits become probabilities and boxes, and how well."""

    score_calibration: ScoreCalibration
    threshold: float
    summary: ValidationSummary


def epoch_metrics(predictions: Sequence[ValidationPrediction], loss: RoiLoss) -> dict[str, Any]:
    """Loss and cell quality at probability one half."""
    probability, targets = _valid(predictions, [p.logits.sigmoid() for p in predictions])
    return {
        "loss": _loss(predictions, loss),
        **cell_quality(probability, targets, 0.5).model_dump(),
        **calibration(probability, targets).model_dump(),
    }


def tune_scores(
    predictions: Sequence[ValidationPrediction], loss: RoiLoss, regions: RegionSettings
) -> TunedScores:
    """Calibrate scores and choose the region threshold, with the weights as they will be used."""
    logits, targets = _valid(predictions, [prediction.logits for prediction in predictions])
    scores = fit_platt(logits, targets)
    maps = [scores.probability(prediction.logits) for prediction in predictions]
    inside = [prediction.inside for prediction in predictions]
    smoothed = [smoothed_scores(m, regions, p.content) for m, p in zip(maps, inside, strict=True)]
    cells, targets = _valid(inside, smoothed)
    sweep = tuple(cell_quality(cells, targets, threshold) for threshold in CANDIDATES)
    chosen = best_point(sweep)
    plain = [prediction.logits.sigmoid() for prediction in predictions]
    summary = ValidationSummary(
        loss=_loss(predictions, loss),
        calibration=calibration(*_valid(predictions, plain)),
        calibrated=_held_out_calibration(predictions),
        chosen=chosen,
        sweep=sweep,
    )
    return TunedScores(scores, chosen.threshold, summary)


def _loss(predictions: Sequence[ValidationPrediction], loss: RoiLoss) -> float:
    logits = torch.cat([p.logits.flatten() for p in predictions])
    labels = torch.cat([p.labels.flatten() for p in predictions])
    return float(roi_loss(logits, labels, loss))


def _held_out_calibration(predictions: Sequence[ValidationPrediction]) -> Calibration | None:
    """Quality of calibrated scores on images that they were not calibrated on."""
    later = set(sorted({prediction.image_key for prediction in predictions})[::2])
    halves: list[list[ValidationPrediction]] = [[], []]
    for prediction in predictions:
        halves[prediction.image_key in later].append(prediction)
    one, other = halves
    if not one or not other:
        return None
    folds = [_calibrated(one, other), _calibrated(other, one)]
    return calibration(
        np.concatenate([scores for scores, _ in folds]),
        np.concatenate([targets for _, targets in folds]),
    )


def _calibrated(
    fitted_on: Sequence[ValidationPrediction], judged: Sequence[ValidationPrediction]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Valid cells of some predictions, with probabilities calibrated on others."""
    scores = fit_platt(*_valid(fitted_on, [item.logits for item in fitted_on]))
    return _valid(judged, [scores.probability(item.logits) for item in judged])


def _valid(
    predictions: Sequence[ValidationPrediction], maps: Sequence[Tensor]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores and foreground flags of all cells that are not ignored, (M,) each."""
    scores = torch.cat([m[valid_cells(p.labels)] for p, m in zip(predictions, maps, strict=True)])
    labels = torch.cat([p.labels[valid_cells(p.labels)] for p in predictions])
    return scores.float().numpy(), (labels == RoiLabel.FOREGROUND).numpy()
