"""Attention for training on CPU: softmax in the working dtype, a third faster than stock eager."""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from sdrpn_core.reference.grounding import GroundingLoss

_NAME = "reference_lean"


def use_lean_attention(model: Any) -> None:
    """Let a model use lean attention, with the additive masks of stock eager attention."""
    AttentionInterface.register(_NAME, _lean_attention)
    AttentionMaskInterface.register(_NAME, eager_mask)
    model.set_attn_implementation(_NAME)


def _lean_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    grounding: GroundingLoss | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    scores = (query * scaling) @ key.transpose(-1, -2)
    if attention_mask is not None:
        scores = scores + attention_mask.to(scores.dtype)
    weights = torch.softmax(scores, dim=-1)
    if grounding is not None:
        grounding.add(int(module.layer_idx), weights)  # type: ignore[arg-type]
    return (weights @ value).transpose(1, 2).contiguous(), None
