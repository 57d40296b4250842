"""RoI logits -> honest probabilities: two numbers, fitted on held-out pseudo-labels (Platt).

The map is increasing, so it moves no cell past another; what changes is what a probability of 0.3
means, and with that what one threshold means from image to image and from model to model.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from data_contracts.base import Settings

MAX_STEPS = 50
_SMALLEST_SCALE = 1e-3
_SMALLEST_SPREAD = 0.1
"""Logits that tell nothing give a nearly flat map, never one turned upside down: of this scale, or
of this standard deviation where the logits' own is so large that the scale leaves more."""
_USUAL_SPREAD = 30.0
"""Beyond this standard deviation, or where every probability is as near to 0 or 1 as this, logits
are standardised first: Newton's method would not get away from the plain sigmoid."""
_SATURATED = 1e-9


class ScoreCalibration(Settings):
    """probability = sigmoid(scale * logit + offset)."""

    scale: float = Field(1.0, gt=0)
    offset: float = 0.0

    def probability(self, logits: Tensor) -> Tensor:
        """Probabilities of RoI logits of any shape."""
        return (logits * self.scale + self.offset).sigmoid()


def fit_platt(logits: NDArray[np.floating], targets: NDArray[np.bool_]) -> ScoreCalibration:
    """Maximum-likelihood scale and offset, by Newton's method.

    Targets are drawn in by Platt's prior, so that perfectly separated cells do not give an infinite
    scale.

    Args:
        logits: (M,) of valid cells.
        targets: (M,) True for foreground.

    Returns:
        The plain sigmoid if there are no cells of one kind.
    """
    num_positive, num_all = int(targets.sum()), targets.size
    if num_positive in (0, num_all):
        return ScoreCalibration()
    high = (num_positive + 1) / (num_positive + 2)
    low = 1 / (num_all - num_positive + 2)
    wanted = torch.from_numpy(np.where(targets, high, low))
    inputs = torch.from_numpy(logits.astype(np.float64))
    scale, offset = _fitted(inputs, wanted)
    spread = float(inputs.std(correction=0))
    smallest = min(_SMALLEST_SCALE, _SMALLEST_SPREAD / spread) if spread else _SMALLEST_SCALE
    if scale < smallest:
        scale = smallest
        # The fitted offset belongs to the fitted scale: without, all cells might be foreground.
        offset = float(wanted.mean().logit() - scale * inputs.mean())
    return ScoreCalibration(scale=scale, offset=offset)


def _fitted(inputs: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Scale and offset of greatest likelihood; a scale of 0 where all logits are the same."""
    spread, centre = float(inputs.std(correction=0)), float(inputs.mean())
    if not spread:
        return 0.0, 0.0
    predicted = inputs.sigmoid()
    is_usual = float((predicted * (1 - predicted)).max()) > _SATURATED and spread < _USUAL_SPREAD
    if is_usual:
        return _newton(inputs, wanted)
    scale, offset = _newton((inputs - centre) / spread, wanted)
    return scale / spread, offset - scale * centre / spread


def _newton(inputs: Tensor, wanted: Tensor) -> tuple[float, float]:
    design = torch.stack([inputs, torch.ones_like(inputs)], dim=1)
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for _ in range(MAX_STEPS):
        step = _newton_step(design, wanted, weights)
        weights = weights - step
        if float(step.abs().max()) < 1e-9:
            break
    return float(weights[0]), float(weights[1])


def _newton_step(design: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """Step to subtract, halved until the loss falls."""
    predicted = (design @ weights).sigmoid()
    gradient = design.T @ (predicted - wanted)
    curvature = design.T @ (design * (predicted * (1 - predicted))[:, None])
    ridge = 1e-9 * curvature.diagonal().max() * torch.eye(len(weights), dtype=weights.dtype)
    step: Tensor = torch.linalg.solve(curvature + ridge, gradient)
    loss = _loss(design, wanted, weights)
    while float(step.abs().max()) > 1e-12 and _loss(design, wanted, weights - step) > loss:
        step = step / 2
    return step


def _loss(design: Tensor, wanted: Tensor, weights: Tensor) -> float:
    return float(
        torch.nn.functional.binary_cross_entropy_with_logits(
            design @ weights, wanted, reduction="sum"
        )
    )
