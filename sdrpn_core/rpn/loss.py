"""Loss over the cells whose pseudo-label is foreground or background; ignored cells do not exist.

A loss is a sum over valid cells divided by a count of valid cells. With the count of the whole
batch as divisor, the losses of its parts add up to the loss of the batch, however it is cut.
"""

import torch
from torch import Tensor
from torch.nn import functional

from data_contracts.enums import RoiLabel
from data_contracts.training import BceLoss, FocalLoss, MseLoss, RoiLoss


def valid_cells(labels: Tensor) -> Tensor:
    """Bool mask, True where a label is foreground or background."""
    return labels != RoiLabel.IGNORE


def roi_loss(
    logits: Tensor, labels: Tensor, loss: RoiLoss, num_valid_cells: int | None = None
) -> Tensor:
    """Mean loss over valid cells; exactly zero, with zero gradient, where there are none.

    Args:
        logits: (N, C) RoI logits.
        labels: (N, C) of ``RoiLabel`` values; on the host, nothing waits for the logits' device.
        loss: which loss.
        num_valid_cells: divisor, for a part of a larger batch; None counts these labels.
    """
    places = valid_cells(labels).nonzero(as_tuple=True)
    # Selecting, not weighting with zero: what an ignored cell holds (even NaN) has no effect.
    chosen, targets = logits[places].float(), labels[places].float().to(logits.device)
    count = chosen.numel() if num_valid_cells is None else num_valid_cells
    return cell_losses(chosen, targets, loss).sum() / max(count, 1)


def cell_losses(logits: Tensor, targets: Tensor, loss: RoiLoss) -> Tensor:
    """Loss of each cell.

    Args:
        logits: any shape, float32.
        targets: same shape, 0 or 1.
        loss: which loss.
    """
    match loss:
        case BceLoss():
            return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        case FocalLoss(alpha=alpha, gamma=gamma):
            return _focal(logits, targets, alpha, gamma)
        case MseLoss():
            return (torch.sigmoid(logits) - targets).square()


def _focal(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Cross-entropy, scaled by (1 - probability of the true class) ** gamma."""
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    is_foreground = targets > 0.5
    sign = torch.where(is_foreground, 1.0, -1.0)
    weight = torch.where(is_foreground, alpha, 1 - alpha)
    return weight * torch.sigmoid(-sign * logits).pow(gamma) * entropy
