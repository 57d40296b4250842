"""One decoding step: a token of every row in, the next token's logits out.

``GrowingStep`` runs anywhere. ``FixedStep`` works on buffers of fixed size, in which columns that
hold no token yet are masked: nothing in it depends on Python or on the length so far, so that on a
CUDA device it is recorded once as a graph and then replayed. A replay starts one thing on the
device instead of some thirty per layer, which is what a step of a large model otherwise waits for.

Shape legend: N batch, L columns, D head size, d hidden size.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from sdrpn_core.attention_capture import AttentionRecorder
from sdrpn_core.attention_kernels import SDPA
from sdrpn_core.decoding import Decoding
from sdrpn_core.masks import attention_mask

if TYPE_CHECKING:  # an adapter owns a pool of steps
    from sdrpn_core.models.base import ModelAdapter

log = logging.getLogger(__name__)

_STEPS_BEFORE_CAPTURE = 4
"""Recording takes about two ordinary steps; buffers that see fewer steps are not worth one."""
_ROOM_AT_ONCE = 128
"""Columns that growing keys and values get more room by: few answers are as long as they may be."""
_MOVING_ROTARY = ("dynamic", "longrope")
"""Rotary embeddings whose frequencies follow the length of the input, from Python."""


_RECORDING = threading.Lock()
"""Recording starts by waiting for the device, which fails while another recording is under way."""
_BROKEN_OFF: list[torch.cuda.CUDAGraph] = []
"""Torch's allocator of pinned memory goes on asking these whether they are being recorded."""


class Step(Protocol):
    """Runs tokens through the decoder, one of every row at a time."""

    def next_logits(self, tokens: Tensor) -> Tensor:
        """(N,) tokens of a step -> (N, vocabulary) logits of the next, valid until the next call.

        Steps come in order, the first with the tokens chosen by ``Decoding.logits``.
        """


class GrowingStep:
    """Keys and values grow into room made for them, one column a step."""

    @torch.inference_mode()
    def __init__(
        self,
        adapter: "ModelAdapter",
        start: Decoding,
        num_steps: int,
        recorder: AttentionRecorder | None = None,
    ) -> None:
        self._adapter = adapter
        self._cache = start.cache
        self._spans = start.spans
        self._position = start.next_position
        self._recorder = recorder
        layers = self._cache.layers
        for index, layer in enumerate(layers):  # one by one: two whole caches may be too large
            layers[index] = _with_room(layer, num_steps)

    @torch.inference_mode()
    def next_logits(self, tokens: Tensor) -> Tensor:
        """As of ``Step``."""
        adapter = self._adapter
        self._spans = tuple(span.with_token() for span in self._spans)
        positions = adapter.text_positions(self._position[:, None])
        hidden = adapter.embedding(tokens)[:, None]
        for span in self._spans:
            hidden = adapter.forward_layers(
                hidden,
                span.first,
                span.last,
                mask=attention_mask(span.key_mask, 1),
                position_ids=positions,
                deepstack=None,
                cache=self._cache,
                recorder=self._recorder,
            )
        self._position = self._position + 1
        return adapter.next_token_logits(hidden[:, -1])


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


class FixedStep:
    """A step on buffers of fixed size; used again and again, by one decoding at a time."""

    @torch.inference_mode()
    def __init__(self, adapter: "ModelAdapter", start: Decoding, shape: StepShape) -> None:
        self.shape = shape
        self.device = device = start.logits.device
        self.adapter: ModelAdapter | None = adapter
        """None while idle: a cycle would keep the model alive."""
        self.reads = weights_read(adapter)
        self._tokens = torch.zeros(shape.num_rows, dtype=torch.long, device=device)
        self._positions = torch.zeros(shape.num_rows, 1, dtype=torch.long, device=device)
        self._spans = [_FixedSpan(shape.num_rows, *span, device=device) for span in shape.spans]
        layers = [
            _FixedLayer(layer, span.column, span.num_columns)
            for span in self._spans
            for layer in start.cache.layers[span.first : span.last]
        ]
        self.num_bytes = sum(layer.num_bytes for layer in layers)
        self._layers = layers
        self._cache = Cache(layers=list(layers))
        self._logits = torch.empty_like(start.logits)
        self._num_steps = 0
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
        else:
            self._graph.replay()
        self._num_steps += 1
        return self._logits

    @property
    def _is_due(self) -> bool:
        """Whether it is time to record."""
        is_worth_it = self._num_steps >= _STEPS_BEFORE_CAPTURE
        return is_worth_it and self._graph is None and not self._is_given_up

    def _run(self) -> None:
        adapter = self.adapter
        assert adapter is not None
        positions = adapter.text_positions(self._positions)
        hidden = adapter.embedding(self._tokens)[:, None]
        for span in self._spans:
            span.show_column()
            hidden = adapter.forward_layers(
                hidden,
                span.first,
                span.last,
                mask=span.key_mask[:, None, None],
                position_ids=positions,
                deepstack=None,
                cache=self._cache,
                kernel=SDPA,  # flash-attn asks the device how many keys there are
            )
            span.column += 1
        self._positions += 1
        self._logits.copy_(adapter.next_token_logits(hidden[:, -1]))

    def _record(self, device: torch.device) -> None:
        """Record a step without running it; if that fails, these buffers go on without."""
        graph, memory = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            _record(graph, self._run, device, memory)
        except RuntimeError as error:
            self._is_given_up = True
            self.is_refused = not isinstance(error, torch.OutOfMemoryError)
            log.warning("decoding goes on without a CUDA graph, slower: %s", error)
            _clear_up(graph, device, memory)
        else:
            self._graph = graph


def _record(
    graph: torch.cuda.CUDAGraph, run: Callable[[], object], device: torch.device, memory: Any
) -> None:
    """Record what ``run`` starts on the device.

    A recording that fails leaves its own stream current: the context before it puts the former
    back. Other threads may use the device meanwhile, if they do not wait for all of it.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with (
        _RECORDING,
        torch.cuda.stream(torch.cuda.current_stream(device)),
        torch.cuda.graph(graph, memory, stream, capture_error_mode="thread_local"),
    ):
        run()


def _clear_up(graph: torch.cuda.CUDAGraph, device: torch.device, memory: Any) -> None:
    """After a recording that CUDA broke off, torch goes on as if it were under way still.

    Memory would not be given back to the device, and random numbers not be drawn.
    """
    with suppress(RuntimeError):  # where only the model's code failed, the recording has ended
        torch._C._cuda_endAllocateToPool(device.index, memory)
        torch._C._cuda_releasePool(device.index, memory)
        graph.reset()
        _BROKEN_OFF.append(graph)
    with suppress(RuntimeError):  # a recording that ends well is what the generator waits for
        _record(
            torch.cuda.CUDAGraph(),
            lambda: torch.zeros(1, device=device),
            device,
            torch.cuda.graph_pool_handle(),
        )


def give_back_cached_memory() -> None:
    """``empty_cache``, which torch does not stand while something is recorded."""
    with _RECORDING:
        torch.cuda.empty_cache()


def weights_read(adapter: "ModelAdapter") -> tuple[tuple[int, torch.dtype], ...]:
    """Address and type of all that a step reads: a graph knows weights by address."""
    parts = (adapter.decoder, adapter.model.get_output_embeddings())
    tensors = (t for part in parts for t in (*part.parameters(), *part.buffers()))
    return tuple((tensor.data_ptr(), tensor.dtype) for tensor in tensors)


def can_be_fixed(adapter: "ModelAdapter", start: Decoding) -> bool:
    """Whether ``FixedStep`` runs this model: plain caches, fixed rotary frequencies, one device.

    Not under autocast: a graph would go on reading casts of weights that end with it.
    """
    devices = {parameter.device for parameter in adapter.model.parameters()}
    return (
        len(devices) == 1
        and not torch.is_autocast_enabled(start.logits.device.type)
        and adapter.decoder.rotary_emb.rope_type not in _MOVING_ROTARY
        and all(type(layer) is DynamicLayer for layer in start.cache.layers)
    )


class _FixedSpan:
    """Which columns some layers see, and where the next token goes."""

    def __init__(
        self, num_rows: int, first: int, last: int, num_columns: int, *, device: torch.device
    ) -> None:
        self.first, self.last, self.num_columns = first, last, num_columns
        self.key_mask = torch.zeros(num_rows, num_columns, dtype=torch.bool, device=device)
        self.column = torch.zeros(1, dtype=torch.long, device=device)

    def load(self, key_mask: Tensor) -> None:
        num_filled = key_mask.shape[1]
        self.key_mask[:, :num_filled] = key_mask
        self.key_mask[:, num_filled:] = False
        self.column.fill_(num_filled)

    def show_column(self) -> None:
        self.key_mask.index_fill_(1, self.column, value=True)


class _FixedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, written at ``column``; attention gets all columns."""

    def __init__(self, like: DynamicLayer, column: Tensor, num_columns: int) -> None:
        super().__init__()
        self.keys, self.values = (_blank(part, num_columns) for part in (like.keys, like.values))
        self.is_initialized = True
        self._column = column

    @property
    def num_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (self.keys, self.values))

    def load(self, filled: DynamicLayer) -> None:
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


class _GrowingLayer(DynamicLayer):  # type: ignore[misc]
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


def _with_room(layer: Any, num_more: int) -> Any:
    """A layer that a step copies no earlier columns of; other kinds of layers stay as they are."""
    return _GrowingLayer(layer, num_more) if type(layer) is DynamicLayer else layer
