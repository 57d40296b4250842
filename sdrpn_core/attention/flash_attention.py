"""Flash attention of padded prompts: by the package flash-attn, or by torch, which has it too.

It takes no mask: only attention that is causal over the columns that hold tokens, and nothing else.
Prompts of several lengths lie one after the other, without their padding.

Shape legend: N batch, H heads, S sequence, Sq queries, D head size, T tokens of all prompts.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

FLASH, TORCH_FLASH = "flash_attention_2", "torch_flash"


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
    kernel: str = FLASH
    """Or ``TORCH_FLASH``."""

    @classmethod
    def from_mask(cls, mask: Tensor | None, kernel: str = FLASH) -> Self:
        """Read the token columns off a causal mask made by ``ColumnMasks``.

        The last query sees every token before it. It also sees itself when it is padding, which
        changes the output of that padding column alone: no other query comes after it.

        Args:
            mask: None, or bool (N, 1, Sq, S), True = keep.
            kernel: that will run.
        """
        if mask is None:
            return cls(None, kernel=kernel)
        return cls(mask[:, 0, -1], mask.shape[2], kernel)

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


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, keys: CausalKeys, scaling: float
) -> Tensor:
    """Causal attention by flash-attn or torch's flash attention.

    Args:
        query: (N, H, Sq, D), the last Sq columns.
        key: (N, Hkv, S, D), grouped heads not repeated.
        value: (N, Hkv, S, D).
        keys: which columns hold tokens, and which of the two.
        scaling: factor on the dot products.

    Returns:
        (N, Sq, H, D); zero at padding columns.
    """
    packings = keys.packings
    run = _torch_flash if keys.kernel == TORCH_FLASH else _flash_attn
    own, others, values = (part.transpose(1, 2) for part in (query, key, value))
    if packings is None:
        return run(own, others, values, scaling, None)
    queries, keys_there = (packing.to(query.device) for packing in packings)
    found = run(
        queries.packed(own),
        keys_there.packed(others),
        keys_there.packed(values),
        scaling,
        (queries, keys_there),
    )
    output = torch.zeros_like(own, memory_format=torch.contiguous_format)
    output[queries.rows, queries.columns] = found[0]
    return output


_Packings = tuple[Packing, Packing]
"""Of queries and of keys."""


def _flash_attn(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, packings: _Packings | None
) -> Tensor:
    """(N, S, H, D) each -> (N, Sq, H, D), through the function that transformers' interface uses.

    With ``packings``, N is 1 and prompts lie one after the other.
    """
    from transformers.modeling_flash_attention_utils import _flash_attention_forward

    lengths: dict[str, Any] = {}
    if packings is not None:
        lengths = {
            "cu_seq_lens_q": packings[0].starts,
            "cu_seq_lens_k": packings[1].starts,
            "max_length_q": packings[0].longest,
            "max_length_k": packings[1].longest,
        }
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


def _torch_flash(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, packings: _Packings | None
) -> Tensor:
    """As ``_flash_attn``, by torch's own."""
    if packings is None:
        return _torch_kernel(query, key, value, None, None, query.shape[1], key.shape[1], scaling)
    own, others = packings
    packed = (query[0], key[0], value[0])
    return _torch_kernel(*packed, own.starts, others.starts, own.longest, others.longest, scaling)[
        None
    ]


def _torch_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor | None,
    key_starts: Tensor | None,
    num_queries: int,
    num_keys: int,
    scaling: float,
) -> Tensor:
    """(N, S, H, D), or (T, H, D) with starts; causal, the last query sees the last key."""
    # Here, as older torch has none: it is tried before it is used.
    from torch.nn.attention.varlen import varlen_attn

    shape = query.shape
    if query_starts is None or key_starts is None:
        query_starts, key_starts = _even_starts(query), _even_starts(key)
        query, key, value = (part.flatten(0, 1) for part in (query, key, value))
    output = varlen_attn(
        query,
        key,
        value,
        query_starts,
        key_starts,
        num_queries,
        num_keys,
        scale=scaling,
        window_size=(-1, 0),  # causal
        enable_gqa=True,
    )
    assert isinstance(output, Tensor)  # nothing else was asked for
    return output.view(shape)


def _even_starts(states: Tensor) -> Tensor:
    """(N + 1,) of (N, S, H, D) whose prompts all have S tokens."""
    num_prompts, length = states.shape[:2]
    end = num_prompts * length + 1
    return torch.arange(0, end, length, dtype=torch.int32, device=states.device)
