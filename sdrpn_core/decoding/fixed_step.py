"""One decoding step on buffers of fixed size, in which columns that hold no token yet are masked.

Nothing in it depends on Python or on the length so far, so that on a CUDA device it is recorded
once as a graph and then replayed. A replay starts one thing on the device instead of some thirty
per layer, which is what a step of a large model otherwise waits for.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from threading import local
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from sdrpn_core.attention.kernels import SDPA
from sdrpn_core.attention.patterns import AttentionPattern
from sdrpn_core.decoding.cache_layers import FixedLayer, FixedState
from sdrpn_core.decoding.decoder import Decoder, DecoderInput
from sdrpn_core.decoding.graph_recording import clear_up, record
from sdrpn_core.decoding.layer_pass import Rotations
from sdrpn_core.decoding.state import Decoding
from sdrpn_core.device_memory import is_out_of_memory

log = logging.getLogger(__name__)

_STEPS_BEFORE_CAPTURE = 4
"""Recording takes about two ordinary steps; buffers that see fewer steps are not worth one."""
_KNOWN_LAYERS = (DynamicLayer, LinearAttentionLayer)
_MOVING_ROTARY = ("dynamic", "longrope")
"""Rotary embeddings whose frequencies follow the length of the input, from Python."""


@dataclass(frozen=True)
class StepShape:
    """What a ``FixedStep`` must be made for."""

    num_rows: int
    spans: tuple[tuple[int, int, int], ...]
    """First layer, end of layers and columns of each span."""

    @classmethod
    def of(cls, start: Decoding, num_steps: int, columns_at_once: int = 256) -> "StepShape":
        """Columns rounded up, so that answers of many lengths can share buffers."""
        spans = tuple(
            (span.first, span.last, -(-(span.key_mask.shape[1] + num_steps) // columns_at_once))
            for span in start.spans
        )
        return cls(
            num_rows=len(start.logits),
            spans=tuple((first, last, blocks * columns_at_once) for first, last, blocks in spans),
        )

    def holds(self, other: "StepShape") -> bool:
        """Whether buffers of this shape have room for another: columns more than needed are
        masked."""
        if (self.num_rows, len(self.spans)) != (other.num_rows, len(other.spans)):
            return False
        return all(
            mine[:2] == theirs[:2] and mine[2] >= theirs[2]
            for mine, theirs in zip(self.spans, other.spans, strict=True)
        )


class FixedStep:
    """A step on buffers of fixed size; used again and again, by one decoding at a time."""

    @torch.inference_mode()
    def __init__(self, decoder: Decoder, start: Decoding, shape: StepShape) -> None:
        self.shape = shape
        self.device = device = start.logits.device
        self.reads = weights_read(decoder)
        self._decoder = decoder
        self._tokens = torch.zeros(shape.num_rows, dtype=torch.long, device=device)
        self._positions = torch.zeros(shape.num_rows, 1, dtype=torch.long, device=device)
        self._spans = [
            _FixedSpan(shape.num_rows, num_columns, decoder, range(first, last))
            for first, last, num_columns in shape.spans
        ]
        layers = [
            span.fixed(layer)
            for span in self._spans
            for layer in start.cache.layers[span.layers.start : span.layers.stop]
        ]
        self.num_bytes = sum(layer.num_bytes for layer in layers)
        self._layers = layers
        self._cache = Cache(layers=list(layers))
        self._logits = torch.empty_like(start.logits)
        self._steps_here = local()
        """``count`` of those that this thread has run, not replayed."""
        self._is_given_up = False
        self.is_refused = False
        """Recording failed, and not for lack of memory: the model may do what no graph can hold."""
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.inference_mode()
    def load(self, start: Decoding) -> None:
        """Begin an answer; what was in the buffers is hidden or overwritten."""
        self._positions.copy_(start.next_position[:, None])
        for mine, span in zip(self._spans, start.spans, strict=True):
            mine.load(span.key_mask)
        for layer, filled in zip(self._layers, start.cache.layers, strict=True):
            layer.load(filled)

    @torch.inference_mode()
    def next_logits(self, tokens: Tensor) -> Tensor:
        """As of ``Step``."""
        self._tokens.copy_(tokens)
        if self._is_due and tokens.is_cuda:
            self._record(tokens.device)
        if self._graph is None:
            self._run()
            self._steps_here.count = self._num_steps_here + 1
        else:
            self._graph.replay()
        return self._logits

    @property
    def _is_due(self) -> bool:
        """Whether it is time to record.

        In a thread that has run steps: libraries open what they keep for a thread when it first
        calls them, which they may not do while something is recorded.
        """
        is_worth_it = self._num_steps_here >= _STEPS_BEFORE_CAPTURE
        return is_worth_it and self._graph is None and not self._is_given_up

    @property
    def _num_steps_here(self) -> int:
        return getattr(self._steps_here, "count", 0)

    def _run(self) -> None:
        decoder = self._decoder
        positions = decoder.text_positions(self._positions)
        hidden = decoder.embedding(self._tokens)[:, None]
        rotations = Rotations(decoder.rotary_emb, hidden, positions)
        for span in self._spans:
            hidden = decoder.run(
                DecoderInput(hidden, span.next_masks(), positions, rotations=rotations),
                span.layers,
                cache=self._cache,
                kernel=SDPA,  # flash-attn asks the device how many keys there are
            )
            span.column += 1
        self._positions += 1
        self._logits.copy_(decoder.next_token_logits(hidden[:, -1]))

    def _record(self, device: torch.device) -> None:
        """Record a step without running it; if that fails, these buffers go on without."""
        graph, memory = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            record(graph, self._run, device, memory)
        except RuntimeError as error:
            self._is_given_up = True
            self.is_refused = not is_out_of_memory(error)
            log.warning("decoding goes on without a CUDA graph, slower: %s", error)
            clear_up(graph, device, memory)
        else:
            self._graph = graph


def weights_read(decoder: Decoder) -> tuple[tuple[int, torch.dtype], ...]:
    """Address and type of all that a step reads: a graph knows weights by address."""
    parts = (decoder.text_model, decoder.model.get_output_embeddings())
    tensors = (t for part in parts for t in (*part.parameters(), *part.buffers()))
    return tuple((tensor.data_ptr(), tensor.dtype) for tensor in tensors)


def can_be_fixed(decoder: Decoder, start: Decoding) -> bool:
    """Whether ``FixedStep`` runs this model: known caches, fixed rotary frequencies, one device.

    Not under autocast: a graph would go on reading casts of weights that end with it.
    """
    devices = {parameter.device for parameter in decoder.model.parameters()}
    return (
        len(devices) == 1
        and not torch.is_autocast_enabled(start.logits.device.type)
        and not any(kind in _MOVING_ROTARY for kind in _rotary_kinds(decoder))
        and all(type(layer) in _KNOWN_LAYERS for layer in start.cache.layers)
    )


def _rotary_kinds(decoder: Decoder) -> Collection[str]:
    """Names of the rules by which rotary frequencies are made."""
    rope_type = decoder.rotary_emb.rope_type
    return [rope_type] if isinstance(rope_type, str) else rope_type.values()


class _FixedSpan:
    """Which columns some layers see, and where the next token goes."""

    def __init__(self, num_rows: int, num_columns: int, decoder: Decoder, layers: range) -> None:
        self.layers = layers
        self._num_columns = num_columns
        self.column = torch.zeros(1, dtype=torch.long, device=decoder.device)
        self._mask = torch.full(
            (num_rows, num_columns), -torch.inf, dtype=decoder.dtype, device=decoder.device
        )
        """0 where a column is seen, else -inf: what the kernel adds to the logits and would make of
        booleans anew in every layer."""
        self._places = torch.zeros_like(self._mask, dtype=torch.long)
        """How many tokens there are up to a column, were all after those loaded tokens too."""

    def fixed(self, layer: Any) -> FixedLayer | FixedState:
        """Buffers for what one of its layers keeps."""
        if isinstance(layer, LinearAttentionLayer):
            return FixedState(layer)
        return FixedLayer(layer, self.column, self._num_columns)

    def load(self, key_mask: Tensor) -> None:
        num_filled = key_mask.shape[1]
        self._mask.fill_(-torch.inf)
        self._mask[:, :num_filled].masked_fill_(key_mask, 0.0)
        self._places.fill_(1)
        self._places[:, :num_filled].copy_(key_mask)
        self._places.copy_(self._places.cumsum(dim=1))
        self.column.fill_(num_filled)

    def next_masks(self) -> "_FixedMasks":
        """What the next column sees, once it is shown itself."""
        self._mask.index_fill_(1, self.column, 0.0)
        return _FixedMasks(self._mask, self._places, self.column)


class _FixedMasks:
    """Masks of one column. To make them from a key mask asks the device whether they are needed."""

    tokens = None

    def __init__(self, mask: Tensor, places: Tensor, column: Tensor) -> None:
        self._whole = mask[:, None, None]
        self._places, self._column = places, column
        self._in_windows: dict[int, Tensor] = {}

    def of(self, pattern: AttentionPattern) -> Tensor:
        """As of ``Masks``, but for what it says: added to the logits, not True for what is kept."""
        window = pattern.window
        if window is None or window >= self._places.shape[1]:
            return self._whole
        if window not in self._in_windows:
            distances = self._places.index_select(1, self._column) - self._places
            is_outside = (distances >= window)[:, None, None]
            self._in_windows[window] = self._whole.masked_fill(is_outside, -torch.inf)
        return self._in_windows[window]
