"""Which attention kernel the decoder runs: flash attention where it can, torch's sdpa elsewhere.

All compute the same attention. torch's sdpa runs flash attention too, but only where there is no
mask. Where there is one, in padded batches and for columns that follow others, such as crops, it
runs a kernel of less than half that speed.
"""

import logging
from functools import cache
from importlib import import_module

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.utils import is_flash_attn_2_available

from sdrpn_core.attention.flash_attention import FLASH, TORCH_FLASH, CausalKeys, flash_attention

log = logging.getLogger(__name__)

SDPA = "sdpa"

_FLASH_DTYPES = (torch.bfloat16, torch.float16)
_FLASH_MAX_HEAD_DIM = 256
_FLASH_COMPUTE_CAPABILITY = (8, 0)


def choose_kernel(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    *,
    has_flash: bool,
    has_torch_flash: bool = False,
) -> str:
    """Kernel for a decoder.

    Args:
        device: where the decoder runs.
        dtype: precision of queries, keys and values.
        head_dim: size of one head.
        has_flash: whether flash-attn can be used on this machine (``flash_is_usable``).
        has_torch_flash: whether torch's own can (``torch_flash_is_usable``).
    """
    may_flash = (
        device.type == "cuda"
        and dtype in _FLASH_DTYPES
        and head_dim <= _FLASH_MAX_HEAD_DIM
        and head_dim % 8 == 0
    )
    if may_flash and has_flash:
        return FLASH
    return TORCH_FLASH if may_flash and has_torch_flash else SDPA


@cache
def flash_is_usable() -> bool:
    """Whether flash-attn is installed, loads and suits the GPU and transformers.

    One log line if it is there and cannot be used.
    """
    if not _gpu_suits():
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


@cache
def torch_flash_is_usable() -> bool:
    """Whether torch's flash attention of packed prompts runs on the GPU and does what sdpa does.

    It is tried, as torch has it since 2.12 only, and may be built without it.
    """
    if not _gpu_suits():
        return False
    try:
        return all(_torch_flash_difference(is_padded) < 2**-5 for is_padded in (False, True))
    except (ImportError, RuntimeError, TypeError) as error:
        log.info("torch's flash attention is not used for padded prompts: %s", error)
        return False


def _gpu_suits() -> bool:
    return (
        torch.cuda.is_available()
        and torch.cuda.get_device_capability() >= _FLASH_COMPUTE_CAPABILITY
    )


def _torch_flash_difference(is_padded: bool) -> float:
    """Largest difference from sdpa, of columns that follow others, with grouped heads."""
    # Numbers from no generator: another thread may be recording a graph.
    query, key, value = (
        torch.arange(2 * heads * columns * 64, device="cuda")
        .mul(0.7)
        .sin()
        .to(torch.bfloat16)
        .reshape(2, heads, columns, 64)
        for heads, columns in ((4, 5), (2, 9), (2, 9))
    )
    columns = torch.arange(9, device="cuda")
    padding = (columns < 2) | (columns == 5)
    key_mask = torch.stack([columns >= 0, ~padding if is_padded else columns >= 0])
    causal = columns <= columns[-5:, None]
    mask = (causal & key_mask[:, None, :] | (columns == columns[-5:, None]))[:, None]
    found = flash_attention(query, key, value, CausalKeys.from_mask(mask, TORCH_FLASH), 0.125)
    wanted = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.125, enable_gqa=True
    ).transpose(1, 2)
    tokens = key_mask[:, -5:]
    return float((found - wanted)[tokens].abs().max())
