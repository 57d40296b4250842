"""RoI losses: ignored cells do not exist, parts of a batch add up, values are checked by hand."""

import math

import numpy as np
import pytest
import torch

from data_contracts.enums import RoiLabel
from data_contracts.training import BceLoss, FocalLoss, MseLoss, RoiLoss
from sdrpn_core.rpn.loss import roi_loss

IGNORE = int(RoiLabel.IGNORE)
LOSSES: list[RoiLoss] = [BceLoss(), FocalLoss(), MseLoss()]
by_type = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.type)


def random_batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 20, generator=generator) * 4
    labels = torch.tensor([0, 1, IGNORE])[torch.randint(3, (6, 20), generator=generator)]
    labels[2] = IGNORE
    return logits, labels


def written_out(logit: float, target: int, loss: RoiLoss) -> float:
    probability = 1 / (1 + math.exp(-logit))
    right = probability if target else 1 - probability
    match loss:
        case BceLoss():
            return -math.log(right)
        case FocalLoss(alpha=alpha, gamma=gamma):
            return -(alpha if target else 1 - alpha) * (1 - right) ** gamma * math.log(right)
        case MseLoss():
            return (probability - target) ** 2


@by_type
def test_value_is_the_mean_over_valid_cells(loss: RoiLoss) -> None:
    logits, labels = random_batch()
    cells = [
        written_out(logit, target, loss)
        for logit, target in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True)
        if target != IGNORE
    ]
    assert float(roi_loss(logits, labels, loss)) == pytest.approx(np.mean(cells), rel=1e-5)


@by_type
def test_ignored_sample_adds_exactly_nothing(loss: RoiLoss) -> None:
    logits, labels = random_batch()
    logits.requires_grad_()
    roi_loss(logits, labels, loss).backward()
    kept = labels != IGNORE
    assert torch.all(logits.grad[~kept] == 0)
    assert torch.all(logits.grad[kept] != 0)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(
        roi_loss(logits[others], labels[others], loss), roi_loss(logits, labels, loss)
    )


@by_type
def test_ignored_cells_may_hold_anything(loss: RoiLoss) -> None:
    logits, labels = random_batch()
    expected = roi_loss(logits, labels, loss)
    spoilt = logits.masked_fill(labels == IGNORE, float("nan")).requires_grad_()
    value = roi_loss(spoilt, labels, loss)
    value.backward()
    assert torch.equal(value, expected)
    assert spoilt.grad.isfinite().all()


@by_type
def test_batch_of_ignored_samples_is_zero_without_nan(loss: RoiLoss) -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    value = roi_loss(logits, torch.full((3, 5), IGNORE), loss)
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(3, 5))


@by_type
@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_of_a_batch_add_up_to_the_batch(loss: RoiLoss, size: int) -> None:
    """Sizes of valid regions differ, so a mean of the parts' means would be another loss."""
    logits, labels = random_batch()
    labels[0, 1:] = IGNORE
    count = int((labels != IGNORE).sum())
    whole, cut = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected = roi_loss(whole, labels, loss)
    expected.backward()
    total = 0.0
    for start in range(0, 6, size):
        part = roi_loss(cut[start : start + size], labels[start : start + size], loss, count)
        part.backward()
        total += part.item()
    assert total == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(cut.grad, whole.grad, atol=1e-8, rtol=1e-5)


def test_mse_never_sees_the_ignore_value() -> None:
    """Reference defect 26: targets [1, 1, 0, -100] were normalised to [-1.02, -1.02, 0, 102.04]."""
    labels = torch.tensor([[1, 1, 0, IGNORE]])
    assert float(roi_loss(torch.tensor([[50.0, 50, -50, 3]]), labels, MseLoss())) < 1e-12
    assert float(roi_loss(torch.zeros(1, 4), labels, MseLoss())) == pytest.approx(0.25)


@by_type
def test_extreme_logits_stay_finite(loss: RoiLoss) -> None:
    logits = torch.tensor([[300.0, -300, 300, -300]], requires_grad=True)
    value = roi_loss(logits, torch.tensor([[0, 1, 1, 0]]), loss)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.zeros(1, 5000, dtype=torch.bfloat16)
    value = roi_loss(logits, torch.zeros(1, 5000, dtype=torch.long), BceLoss())
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(math.log(2), rel=1e-5)
