"""Decoder layers that hand a state from column to column, where others attend to all earlier ones.

LFM's short convolutions are such, and Qwen3.5's gated delta nets: a short convolution, then a
matrix that every column decays and adds to. There is no mask by which they could pass over a column
between two others. So what holds no token is left out before they run, each set of rows that leave
out the same columns by itself.

Shape legend: N rows, L columns, d hidden size.
"""

import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import LinearAttentionLayer

from sdrpn_core.decoding.layer_arguments import cache_arguments
from sdrpn_core.decoding.part_names import state_mixer

_HEADLESS = {"linear_attention", "conv"}
"""Kinds of layers that hand on a state, as configurations name them."""
_STATES = ("conv_states", "recurrent_states")
_NOTES = (
    "is_conv_states_initialized",
    "is_recurrent_states_initialized",
    "has_previous_state",
    "conv_kernel_size",
)
"""What a layer's cache keeps by number of the state, in dictionaries that it changes in place."""


def is_recurrent(layer: nn.Module) -> bool:
    """Whether a decoder layer hands on a state, and has no attention heads."""
    return state_mixer(layer) is not None


def attention_layers(config: PreTrainedConfig) -> tuple[int, ...]:
    """Indices of a text model's layers that have attention heads."""
    kinds = getattr(config, "layer_types", None) or [""] * config.num_hidden_layers
    return tuple(index for index, kind in enumerate(kinds) if kind not in _HEADLESS)


class TokenColumns:
    """Which columns of a pass hold tokens; the device is asked once, if at all."""

    def __init__(self, tokens: Tensor | None) -> None:
        """Take note of them.

        Args:
            tokens: (N, L) bool, True where a column holds one; None if all do.
        """
        self._tokens = tokens

    def run(
        self,
        layer: Any,
        hidden: Tensor,
        cache: Cache | None,
        rotation: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Run a recurrent layer over the columns that hold tokens.

        Args:
            layer: the stock layer.
            hidden: (N, L, d) its input.
            cache: with the state after earlier columns; brought up to date in place.
            rotation: that of layers with heads, which the stock layer asks for and does not use.

        Returns:
            (N, L, d); anything finite where a column holds no token.
        """
        index = state_mixer(layer).layer_idx
        is_first = cache is None or not any(cache.layers[index].has_previous_state.values())
        if self._is_whole or (is_first and self._is_left_padded):
            # No token is passed over: columns of zeros leave a state of zeros as it is.
            mask = None if self._is_whole else self._tokens
            return _run(layer, hidden, mask, cache, rotation)
        output = hidden.clone()
        for group in self._groups:
            rows, columns = (places.to(hidden.device) for places in group)
            place = (rows[:, None], columns)
            own = None if cache is None else _with_rows(cache, index, rows)
            found = _run(layer, hidden[place], None, own, rotation)
            output[place] = found.to(output.device)  # the layer may be on another
            if cache is not None and own is not None:
                put_rows(cache.layers[index], own.layers[index], rows, len(hidden))
        return output

    @cached_property
    def _is_whole(self) -> bool:
        return self._tokens is None or bool(self._tokens.all())

    @cached_property
    def _is_left_padded(self) -> bool:
        assert self._tokens is not None
        return bool((self._tokens[:, 1:] >= self._tokens[:, :-1]).all())

    @cached_property
    def _groups(self) -> list[tuple[Tensor, Tensor]]:
        """Rows that have their tokens at the same columns, and which these are."""
        assert self._tokens is not None
        patterns, groups = torch.unique(self._tokens.cpu(), dim=0, return_inverse=True)
        return [
            ((groups == number).nonzero()[:, 0], pattern.nonzero()[:, 0])
            for number, pattern in enumerate(patterns)
            if bool(pattern.any())
        ]


def _run(
    layer: Any,
    hidden: Tensor,
    tokens: Tensor | None,
    cache: Cache | None,
    rotation: tuple[Tensor, Tensor] | None,
) -> Tensor:
    output: Tensor = layer(
        hidden,
        attention_mask=None if tokens is None else tokens.to(hidden.device),
        position_embeddings=rotation,
        **cache_arguments(layer, cache),
    )
    return output


def of_rows(layer: LinearAttentionLayer, rows: Tensor) -> LinearAttentionLayer:
    """A copy of a layer's state, of some rows, repeats allowed; the next step may change it."""
    chosen = copy.copy(layer)
    for name in (*_STATES, *_NOTES):
        setattr(chosen, name, dict(getattr(layer, name)))
    for name in _STATES:
        states = getattr(chosen, name)
        for number, state in states.items():
            if state is not None:
                states[number] = state.index_select(0, rows.to(state.device))
    return chosen


def states_of(layer: LinearAttentionLayer) -> list[Tensor]:
    """Every state that a layer has, rows first."""
    kept = (state for name in _STATES for state in getattr(layer, name).values())
    return [state for state in kept if state is not None]


def put_rows(
    layer: LinearAttentionLayer, part: LinearAttentionLayer, rows: Tensor, num_rows: int
) -> None:
    """Write the state of some rows into that of all; zeros for those that have none yet.

    Args:
        layer: of ``num_rows`` rows, or without a state yet.
        part: of ``rows``.
        rows: (M,) their places.
        num_rows: N.
    """
    for name in _NOTES:
        getattr(layer, name).update(getattr(part, name))
    layer.device, layer.dtype = part.device, part.dtype
    for name in _STATES:
        whole = getattr(layer, name)
        for number, state in getattr(part, name).items():
            if state is None:
                continue
            if whole[number] is None:
                whole[number] = state.new_zeros((num_rows, *state.shape[1:]))
            whole[number][rows.to(state.device)] = state


def _with_rows(cache: Cache, index: int, rows: Tensor) -> Cache:
    """A cache that has some rows' state of one layer."""
    chosen = copy.copy(cache)
    chosen.layers = list(cache.layers)
    chosen.layers[index] = of_rows(cache.layers[index], rows)
    return chosen
