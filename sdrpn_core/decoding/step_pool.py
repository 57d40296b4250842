"""Buffers of decoding steps that are kept between answers, so that their graphs are used again."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakSet

import torch

from sdrpn_core.attention.capture import AttentionRecorder
from sdrpn_core.decoding.cache_layers import num_bytes_fixed
from sdrpn_core.decoding.decoder import Decoder
from sdrpn_core.decoding.fixed_step import FixedStep, StepShape, can_be_fixed, weights_read
from sdrpn_core.decoding.graph_recording import give_back_cached_memory
from sdrpn_core.decoding.growing_step import GrowingStep
from sdrpn_core.decoding.state import Decoding, Step
from sdrpn_core.device_memory import is_out_of_memory

MAX_SHARE = 1 / 3
"""Of the memory that the model leaves on its device: buffers of fixed size may take as much."""
MAX_IDLE = 16
"""A graph also holds some memory of its own, which is not counted: there must not be any number."""
MAX_WIDTH = 2
"""Idle buffers of up to so many times the bytes that are needed are taken where new ones would push
out idle ones: batches whose crops differ in length would push out each other's graphs by turns, and
to record one takes as long as many steps over columns that are masked."""
MAX_REFUSED = 2
"""Recordings that failed before no more are tried: another thread's doing, or the model's."""

T = TypeVar("T")


class StepPool:
    """Fixed steps of one decoder, by shape; each is lent to one decoding at a time."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._lock = threading.Lock()
        self._idle: OrderedDict[StepShape, FixedStep] = OrderedDict()
        self._returned: deque[FixedStep] = deque()
        self._living: WeakSet[FixedStep] = WeakSet()
        """The lent ones too."""
        self._num_refused = 0

    @contextmanager
    def step(
        self,
        start: Decoding,
        num_steps: int,
        recorder: AttentionRecorder | None = None,
    ) -> Iterator[Step]:
        """The fastest step for a decoding of so many steps; uses ``start`` up."""
        fixed = None
        if recorder is None and start.logits.is_cuda and can_be_fixed(self._decoder, start):
            fixed = self._lend(start, StepShape.of(start, num_steps))
        if fixed is None:
            yield self.with_room(lambda: GrowingStep(self._decoder, start, num_steps, recorder))
            return
        try:
            fixed.load(start)
            start.cache.layers.clear()  # all of it is in the buffers now
            yield fixed
        finally:
            self._take_back(fixed)

    def with_room(self, work: Callable[[], T]) -> T:
        """Do some work; once more without idle buffers if they left it too little memory.

        Args:
            work: what may use much of the device's memory and can be done twice.
        """
        try:
            return work()
        except RuntimeError as error:
            if not (is_out_of_memory(error) and self._forget_idle()):
                raise
        give_back_cached_memory()
        return work()

    def _lend(self, start: Decoding, shape: StepShape) -> FixedStep | None:
        """An idle one or a new one; None if the device has no room for it, or it brings nothing."""
        with self._lock:
            self._settle()
            if self._num_refused >= MAX_REFUSED:
                return None
            step = self._idle.pop(shape, None)
            if step is not None and step.reads != weights_read(self._decoder):
                step = None
            return step or self._made(start, shape)

    def _made(self, start: Decoding, shape: StepShape) -> FixedStep | None:
        room = _room(self._decoder, start.logits.device) - self._num_lent_bytes()
        needed = _num_bytes(start, shape)
        if needed > room:
            return None
        if self._num_idle_bytes() > room - needed and (wider := self._wider(shape, needed)):
            return wider
        self._shrink(room - needed)
        try:
            step = FixedStep(self._decoder, start, shape)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._idle.clear()
            return None
        self._living.add(step)
        return step

    def _wider(self, shape: StepShape, needed: int) -> FixedStep | None:
        """The least of the idle ones that have at least these columns, if it is not much larger."""
        fitting = (
            step
            for step in self._idle.values()
            if step.shape.holds(shape) and step.num_bytes <= MAX_WIDTH * needed
        )
        least = min(fitting, key=lambda step: step.num_bytes, default=None)
        if least is None or least.reads != weights_read(self._decoder):
            return None
        return self._idle.pop(least.shape)

    def _take_back(self, step: FixedStep) -> None:
        """Without waiting: garbage collection may end a decoding in a thread that has the lock."""
        self._returned.append(step)
        if self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        """Those that came back are idle; of one shape, one is kept."""
        while self._returned:
            step = self._returned.popleft()
            if step.is_refused:
                self._num_refused += 1
            else:
                self._idle[step.shape] = step
        self._shrink(float("inf"))

    def _forget_idle(self) -> bool:
        """Whether there were any."""
        with self._lock:
            self._settle()
            found = bool(self._idle)
            self._idle.clear()
        return found

    def _shrink(self, num_bytes: float) -> None:
        """Forget those that were used longest ago."""
        idle = self._idle
        while idle and (len(idle) > MAX_IDLE or self._num_idle_bytes() > num_bytes):
            idle.popitem(last=False)

    def _num_idle_bytes(self) -> int:
        return sum(step.num_bytes for step in self._idle.values())

    def _num_lent_bytes(self) -> int:
        idle = set(self._idle.values())
        return sum(step.num_bytes for step in self._living if step not in idle)


def _room(decoder: Decoder, device: torch.device) -> float:
    """Bytes that buffers may take."""
    model = sum(part.numel() * part.element_size() for part in decoder.model.parameters())
    total: int = torch.cuda.get_device_properties(device).total_memory
    return MAX_SHARE * float(total - model)


def _num_bytes(start: Decoding, shape: StepShape) -> int:
    """Of the keys, values and states of a fixed step."""
    return sum(
        num_bytes_fixed(layer, num_columns)
        for first, last, num_columns in shape.spans
        for layer in start.cache.layers[first:last]
    )
