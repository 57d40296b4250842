"""Which attention kernel the decoder runs: flash-attn where it can, torch's sdpa elsewhere.

Both compute the same attention. flash-attn takes no mask, only which keys are tokens, so it runs
where the caller says that attention is causal and nothing else (``CausalKeys``).

Shape legend: N batch, H heads, S sequence, D head size.
"""

import logging
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Self

import torch
from torch import Tensor
from transformers.utils import is_flash_attn_2_available

log = logging.getLogger(__name__)

SDPA, FLASH = "sdpa", "flash_attention_2"

_FLASH_DTYPES = (torch.bfloat16, torch.float16)
_FLASH_MAX_HEAD_DIM = 256
_FLASH_COMPUTE_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class CausalKeys:
    """Attention is causal over the columns that hold tokens, and nothing else."""

    key_mask: Tensor | None
    """(N, S) bool, True = token; None if all are."""

    @classmethod
    def from_mask(cls, mask: Tensor | None) -> Self:
        """Read the token columns off a causal mask made by ``ColumnMasks``.

        The last query sees every token before it. It also sees itself when it is padding, which
        changes the output of that padding column alone: no other query comes after it.

        Args:
            mask: None, or bool (N, 1, Sq, S), True = keep.
        """
        return cls(None if mask is None else mask[:, 0, -1])


def choose_kernel(
    device: torch.device, dtype: torch.dtype, head_dim: int, *, has_flash: bool
) -> str:
    """Kernel for a decoder.

    Args:
        device: where the decoder runs.
        dtype: precision of queries, keys and values.
        head_dim: size of one head.
        has_flash: whether flash-attn can be used on this machine (``flash_is_usable``).
    """
    may_flash = (
        has_flash
        and device.type == "cuda"
        and dtype in _FLASH_DTYPES
        and head_dim <= _FLASH_MAX_HEAD_DIM
        and head_dim % 8 == 0
    )
    return FLASH if may_flash else SDPA


@cache
def flash_is_usable() -> bool:
    """Whether flash-attn is installed, loads and suits the GPU and transformers.

    One log line if it is there and cannot be used.
    """
    if not torch.cuda.is_available():
        return False
    if torch.cuda.get_device_capability() < _FLASH_COMPUTE_CAPABILITY:
        return False
    try:
        import_module("flash_attn")
    except ModuleNotFoundError:
        return False
    except (ImportError, OSError) as error:  # built for another torch or CUDA
        log.warning("flash-attn is installed but does not load, sdpa is used instead: %s", error)
        return False
    if not is_flash_attn_2_available():  # too old, or flash-attn 4, which goes by the same name
        log.warning(
            "the flash-attn that is installed is not one that transformers runs, sdpa is used "
            "instead: install flash-attn 2"
        )
        return False
    return True


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, keys: CausalKeys, scaling: float
) -> Tensor:
    """Causal attention by flash-attn, through the function that transformers' own interface uses.

    Args:
        query: (N, H, Sq, D), the last Sq columns.
        key: (N, Hkv, S, D), grouped heads not repeated.
        value: (N, Hkv, S, D).
        keys: which columns hold tokens.
        scaling: factor on the dot products.

    Returns:
        (N, Sq, H, D); zero at padding columns.
    """
    from transformers.modeling_flash_attention_utils import _flash_attention_forward

    key_mask = keys.key_mask
    output: Tensor = _flash_attention_forward(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        None if key_mask is None else key_mask.to(query.device),
        query_length=query.shape[2],
        is_causal=True,
        softmax_scale=scaling,
        attn_implementation=FLASH,
    )
    return output
