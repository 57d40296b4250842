"""Stock models of any size with random weights, made where they will run."""

from typing import TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

M = TypeVar("M", bound=PreTrainedModel)


def random_weights(
    kind: type[M], config: PreTrainedConfig, *, device: str, dtype: torch.dtype
) -> M:
    """Built in its precision on its device: a model of 7B is never in the CPU's memory."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return kind(config)
    finally:
        torch.set_default_dtype(default)
