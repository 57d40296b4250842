"""What a decoder layer keeps of earlier columns, written in place: no step copies it.

Shape legend: N batch, H heads, L columns, D head size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from sdrpn_core.decoding.recurrent_layers import put_rows, states_of

_ROOM_AT_ONCE = 128
"""Columns that growing keys and values get more room by: few answers are as long as they may be."""


class FixedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, written at ``column``; attention gets all columns."""

    def __init__(self, like: DynamicLayer, column: Tensor, num_columns: int) -> None:
        super().__init__()
        self.keys, self.values = (_blank(part, num_columns) for part in (like.keys, like.values))
        self.is_initialized = True
        self._column = column

    @property
    def num_bytes(self) -> int:
        """Of both buffers."""
        return num_bytes_fixed(self, self.keys.shape[2])

    def load(self, filled: DynamicLayer) -> None:
        """Take in an answer's beginning; columns behind it are zero."""
        for mine, theirs in ((self.keys, filled.keys), (self.values, filled.values)):
            num_filled = theirs.shape[2]
            mine[:, :, :num_filled] = theirs
            mine[:, :, num_filled:] = 0  # a NaN of an earlier answer would get past the mask

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one column."""
        self.keys.index_copy_(2, self._column, key_states)
        self.values.index_copy_(2, self._column, value_states)
        return self.keys, self.values


class FixedState(LinearAttentionLayer):  # type: ignore[misc]
    """State of one layer at a fixed address; it has one size, whatever came before."""

    def __init__(self, like: LinearAttentionLayer) -> None:
        super().__init__(number_of_states=like.number_of_states)
        num_rows = len(states_of(like)[0])
        put_rows(self, like, torch.arange(num_rows), num_rows)

    @property
    def num_bytes(self) -> int:
        """Of all buffers."""
        return num_bytes_fixed(self, 0)

    def load(self, filled: LinearAttentionLayer) -> None:
        """Take in an answer's beginning."""
        for mine, theirs in zip(states_of(self), states_of(filled), strict=True):
            mine.copy_(theirs)


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer with room behind them; attention gets the filled columns."""

    def __init__(self, filled: DynamicLayer, num_more: int) -> None:
        super().__init__()
        self._num_filled = filled.keys.shape[2]
        num_columns = self._num_filled + min(num_more, _ROOM_AT_ONCE)
        self._room = [_blank(part, num_columns) for part in (filled.keys, filled.values)]
        self.is_initialized = True
        self.keys, self.values = self._taken_in(0, filled.keys, filled.values)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Fill further columns."""
        start = self._num_filled
        self._num_filled += key_states.shape[2]
        if self._num_filled > self._room[0].shape[2]:
            pad = (0, 0, 0, _ROOM_AT_ONCE)
            self._room = [torch.nn.functional.pad(room, pad) for room in self._room]
        self.keys, self.values = self._taken_in(start, key_states, value_states)
        return self.keys, self.values

    def _taken_in(self, start: int, *parts: Tensor) -> Sequence[Tensor]:
        for room, part in zip(self._room, parts, strict=True):
            room[:, :, start : self._num_filled] = part
        return [room[:, :, : self._num_filled] for room in self._room]


def _blank(like: Tensor, num_columns: int) -> Tensor:
    """(N, H, L, D) -> zeros of ``num_columns`` columns: unwritten ones must not be NaN."""
    num_rows, num_heads, _, head_size = like.shape
    return like.new_zeros((num_rows, num_heads, num_columns, head_size))


def with_room(layer: Any, num_more: int) -> Any:
    """A layer that a step copies no earlier columns of; other kinds of layers stay as they are."""
    return GrowingLayer(layer, num_more) if type(layer) is DynamicLayer else layer


def num_bytes_fixed(layer: Any, num_columns: int) -> int:
    """What buffers of fixed size take for a layer, before they are made."""
    if isinstance(layer, LinearAttentionLayer):
        return sum(state.numel() * state.element_size() for state in states_of(layer))
    parts = (layer.keys, layer.values)
    return sum(p.numel() // p.shape[2] * num_columns * p.element_size() for p in parts)
