"""Buffers of decoding steps that are kept between answers, so that their graphs are used again."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from sdrpn_core.attention_capture import AttentionRecorder
from sdrpn_core.decode_steps import (
    FixedStep,
    GrowingStep,
    Step,
    StepShape,
    can_be_fixed,
    weights_read,
)
from sdrpn_core.decoding import Decoding

if TYPE_CHECKING:  # an adapter owns a pool
    from sdrpn_core.models.base import ModelAdapter

MAX_SHARE = 1 / 3
"""Of a device's memory that buffers of fixed size may take, in all."""


class StepPool:
    """Fixed steps of one adapter, by shape; each is lent to one decoding at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[StepShape, FixedStep] = OrderedDict()

    @contextmanager
    def step(
        self,
        adapter: "ModelAdapter",
        start: Decoding,
        num_steps: int,
        recorder: AttentionRecorder | None = None,
    ) -> Iterator[Step]:
        """The fastest step for a decoding of so many steps."""
        fixed = None
        if recorder is None and start.logits.is_cuda and can_be_fixed(adapter, start):
            fixed = self._lend(adapter, start, StepShape.of(start, num_steps))
        if fixed is None:
            yield GrowingStep(adapter, start, num_steps, recorder)
            return
        fixed.load(start)
        try:
            yield fixed
        finally:
            self._take_back(fixed)

    def _lend(self, adapter: "ModelAdapter", start: Decoding, shape: StepShape) -> FixedStep | None:
        """An idle one or a new one; None if the device has no room for it."""
        with self._lock:
            idle = self._idle.pop(shape, None)
        if idle is not None and idle.reads == weights_read(adapter):
            idle.adapter = adapter
            return idle
        room, needed = _room(start.logits.device), _num_bytes(start, shape)
        if needed > room:
            return None
        self._shrink(room - needed)
        try:
            return FixedStep(adapter, start, shape)
        except torch.OutOfMemoryError:
            self._shrink(0)
            return None

    def _take_back(self, step: FixedStep) -> None:
        step.adapter = None
        with self._lock:
            self._idle[step.shape] = step
        self._shrink(_room(step.device))  # several may have been lent at once

    def _shrink(self, num_bytes: float) -> None:
        """Forget those that were used longest ago."""
        with self._lock:
            while self._idle and sum(s.num_bytes for s in self._idle.values()) > num_bytes:
                self._idle.popitem(last=False)


def _room(device: torch.device) -> float:
    """Bytes that buffers may take."""
    return MAX_SHARE * torch.cuda.get_device_properties(device).total_memory


def _num_bytes(start: Decoding, shape: StepShape) -> int:
    """Of the keys and values of a fixed step."""
    return sum(
        part.numel() // part.shape[2] * num_columns * part.element_size()
        for first, last, num_columns in shape.spans
        for layer in start.cache.layers[first:last]
        for part in (layer.keys, layer.values)
    )
