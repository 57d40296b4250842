"""Parts of key-value caches: one prefix for several prompts, and prompts joined for decoding.

Layers of keys and values grow by concatenation, so caches may share tensors; nothing here changes
one. Layers that hand on a state change it in place, and get copies.

Shape legend: N rows, H key heads, S columns, D head size.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import LinearAttentionLayer

from sdrpn_core.decoding.recurrent_layers import of_rows, put_rows
from sdrpn_core.decoding.state import LayerSpan


def fork(cache: Cache, rows: Tensor) -> Cache:
    """A cache that starts out with some rows of another and grows on its own.

    Args:
        cache: filled in any of its layers.
        rows: (N,) rows of ``cache``, repeats allowed; if they are all there are, in order, no keys
            and values are copied.
    """
    forked = copy.copy(cache)
    chosen = rows.tolist()
    forked.layers = [_forked(layer, rows, chosen) for layer in cache.layers]
    return forked


def _forked(layer: Any, rows: Tensor, chosen: list[int]) -> Any:
    if isinstance(layer, LinearAttentionLayer):
        return of_rows(layer, rows)
    forked = copy.copy(layer)
    if layer.is_initialized and chosen != list(range(len(layer.keys))):
        forked.keys = layer.keys.index_select(0, rows.to(layer.keys.device))
        forked.values = layer.values.index_select(0, rows.to(layer.values.device))
    return forked


def first_columns(cache: Cache, number: int) -> Cache:
    """A cache of the first columns of another; nothing is copied. No layer may hand on a state."""
    shorter = copy.copy(cache)
    shorter.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in shorter.layers:
        if layer.is_initialized:
            layer.keys, layer.values = layer.keys[:, :, :number], layer.values[:, :, :number]
    return shorter


def take_layers(target: Cache, source: Cache, first: int) -> None:
    """Replace layers ``first`` and up of one cache by another's; both have the same rows."""
    target.layers[first:] = source.layers[first:]


@dataclass(frozen=True)
class CachePart:
    """Some rows of a batch, after their prompts."""

    cache: Cache
    spans: tuple[LayerSpan, ...]
    """The same layers in every part of a batch."""
    rows: Tensor
    """(N,) places of these rows in the whole batch, rising."""


def join(parts: Sequence[CachePart]) -> tuple[Cache, tuple[LayerSpan, ...]]:
    """Put parts of a batch together for decoding; those with fewer columns are padded on the left.

    The parts' caches are used up: each layer is let go of when it is joined, so that a batch is
    never held twice over.

    Returns:
        The cache of the whole batch, and its spans of layers.
    """
    if len(parts) == 1:
        return parts[0].cache, parts[0].spans
    joined = copy.copy(parts[0].cache)
    joined.layers = []
    for _ in range(len(parts[0].cache.layers)):
        layers = [part.cache.layers.pop(0) for part in parts]
        joined.layers.append(_joined(layers, parts))
    spans = tuple(
        replace(same[0], key_mask=_scatter([span.key_mask for span in same], parts))
        for same in zip(*(part.spans for part in parts), strict=True)
    )
    return joined, spans


def _joined(layers: Sequence[Any], parts: Sequence[CachePart]) -> Any:
    """One layer of the whole batch."""
    first = layers[0]
    if isinstance(first, LinearAttentionLayer):
        states = type(first)(number_of_states=first.number_of_states)
        num_rows = sum(len(part.rows) for part in parts)
        for own, part in zip(layers, parts, strict=True):
            put_rows(states, own, part.rows, num_rows)
        return states
    layer = copy.copy(first)
    if layer.is_initialized:
        layer.keys = _joined_columns([item.keys for item in layers], parts)
        layer.values = _joined_columns([item.values for item in layers], parts)
    return layer


def _joined_columns(values: Sequence[Tensor], parts: Sequence[CachePart]) -> Tensor:
    """(N, H, S, D) of all parts -> (N, H, S, D) of the whole batch."""
    return _scatter([item.transpose(1, 2) for item in values], parts).transpose(1, 2)


def _scatter(values: Sequence[Tensor], parts: Sequence[CachePart]) -> Tensor:
    """(N, S, ...) of all parts -> the whole batch, rows at their places, zeros on the left."""
    num_columns = max(item.shape[1] for item in values)
    num_rows = sum(len(item) for item in values)
    whole = values[0].new_empty((num_rows, num_columns, *values[0].shape[2:]))
    for item, part in zip(values, parts, strict=True):
        rows, num_blank = part.rows.to(whole.device), num_columns - item.shape[1]
        whole[rows, num_blank:] = item
        if num_blank:
            whole[rows, :num_blank] = 0
    return whole
