"""Which attention kernel the decoder runs: flash-attn where it can, torch's sdpa elsewhere.

Both compute the same attention. flash-attn takes no mask, only which keys are tokens, so it runs
where the caller says that attention is causal and nothing else (``CausalKeys``).

Shape legend: N batch, H heads, S sequence, Sq queries, D head size, T tokens of all prompts.
"""

import logging
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import Any, Self

import torch
from torch import Tensor
from transformers.utils import is_flash_attn_2_available

log = logging.getLogger(__name__)

SDPA, FLASH = "sdpa", "flash_attention_2"

_FLASH_DTYPES = (torch.bfloat16, torch.float16)
_FLASH_MAX_HEAD_DIM = 256
_FLASH_COMPUTE_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Packing:
    """Tokens of padded prompts, one prompt after the other, as flash-attn takes them."""

    rows: Tensor
    """(T,)"""
    columns: Tensor
    """(T,)"""
    starts: Tensor
    """(N + 1,) int32, where prompts begin, and T."""
    longest: int

    @classmethod
    def of(cls, is_token: Tensor, device: torch.device) -> Self:
        """Pack columns.

        Args:
            is_token: (N, S) bool, on the host.
            device: where the packing will be used.
        """
        rows, columns = is_token.nonzero(as_tuple=True)
        lengths = is_token.sum(dim=1, dtype=torch.int32)
        starts = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return cls(rows.to(device), columns.to(device), starts.to(device), int(lengths.max()))

    def packed(self, values: Tensor) -> Tensor:
        """(N, S, H, D) -> (1, T, H, D)"""
        return values[self.rows, self.columns][None]

    def to(self, device: torch.device) -> "Packing":
        """The same for layers on another device."""
        if self.rows.device == device:
            return self
        return Packing(
            self.rows.to(device), self.columns.to(device), self.starts.to(device), self.longest
        )


@dataclass(frozen=True)
class CausalKeys:
    """Attention of a pass is causal over the columns that hold tokens, and nothing else."""

    key_mask: Tensor | None
    """(N, S) bool, True = token; None if all are."""
    num_queries: int = 0
    """Sq, the last columns; without meaning if all hold tokens."""

    @classmethod
    def from_mask(cls, mask: Tensor | None) -> Self:
        """Read the token columns off a causal mask made by ``ColumnMasks``.

        The last query sees every token before it. It also sees itself when it is padding, which
        changes the output of that padding column alone: no other query comes after it.

        Args:
            mask: None, or bool (N, 1, Sq, S), True = keep.
        """
        return cls(None) if mask is None else cls(mask[:, 0, -1], mask.shape[2])

    @cached_property
    def packings(self) -> tuple[Packing, Packing] | None:
        """Of queries and of keys; None if all columns hold tokens.

        Made once for all layers of a pass, as it waits for the device. transformers would make it
        anew in every layer, and also where there is nothing to leave out: columns that follow
        others have a mask for that alone.
        """
        if self.key_mask is None:
            return None
        is_token = self.key_mask.cpu()
        if bool(is_token.all()):
            return None
        own = is_token[:, -self.num_queries :]
        device = self.key_mask.device
        return Packing.of(own, device), Packing.of(is_token, device)


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
    packings = keys.packings
    own, others, values = (part.transpose(1, 2) for part in (query, key, value))
    if packings is None:
        return _flash(own, others, values, scaling)
    queries, keys_there = (packing.to(query.device) for packing in packings)
    found = _flash(
        queries.packed(own),
        keys_there.packed(others),
        keys_there.packed(values),
        scaling,
        cu_seq_lens_q=queries.starts,
        cu_seq_lens_k=keys_there.starts,
        max_length_q=queries.longest,
        max_length_k=keys_there.longest,
    )
    output = torch.zeros_like(own, memory_format=torch.contiguous_format)
    output[queries.rows, queries.columns] = found[0]
    return output


def _flash(query: Tensor, key: Tensor, value: Tensor, scaling: float, **lengths: Any) -> Tensor:
    """(N, S, H, D) each -> (N, Sq, H, D); with ``lengths``, N is 1 and prompts are packed."""
    from transformers.modeling_flash_attention_utils import _flash_attention_forward

    output: Tensor = _flash_attention_forward(
        query,
        key,
        value,
        None,
        query_length=query.shape[1],
        is_causal=True,
        softmax_scale=scaling,
        attn_implementation=FLASH,
        **lengths,
    )
    return output
