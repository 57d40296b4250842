"""What a device's memory does not hold: done in smaller batches, or said with the remedy."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

from data_contracts.artifact import ArtifactRef, ShardEntry
from data_contracts.enums import Stage
from data_contracts.errors import SdrpnError
from data_contracts.runtime import RuntimeConfig
from sdrpn_core.device_memory import is_out_of_memory

A = TypeVar("A")
T = TypeVar("T")

log = logging.getLogger(__name__)

_MEASURED = "batch_size"


class DeviceMemoryFull(SdrpnError):
    """A batch does not fit into the memory of the device."""


@contextmanager
def device_memory_explained(runtime: RuntimeConfig) -> Iterator[None]:
    """Turn torch's error into one that names the setting to change.

    Raises:
        DeviceMemoryFull: instead of what torch or its libraries raise.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise _full(runtime.device, runtime.batch_size) from error


def smaller_if_full(
    device: object, batch_size: int, whole: Callable[[], T], smaller: Callable[[int], T]
) -> T:
    """Do some work; in smaller batches if the device's memory does not hold this one.

    Args:
        device: what it runs on.
        batch_size: of the work.
        whole: does it, and leaves nothing behind if memory is full.
        smaller: does it instead, in batches of the size that it is given.

    Raises:
        DeviceMemoryFull: if a batch of one does not fit.
    """
    try:
        return whole()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if batch_size == 1:
            raise _full(device, 1) from error
    # Only here, where nothing holds on to the error, is the memory of what failed free again.
    half = (batch_size + 1) // 2
    log.warning(
        "the memory of device '%s' does not hold a batch of %d: it goes on with %d at a time; a "
        "smaller --batch-size saves the time of trying",
        device,
        batch_size,
        half,
    )
    return smaller(half)


class BatchSize:
    """How many units of an artifact are worked on at a time.

    Once the device's memory does not hold so many, it is less for the rest of a shard. The next one
    begins with the most that memory held in it: what one large unit needs is no measure for others.
    """

    def __init__(self, wanted: int) -> None:
        """Begin with as many as the runtime settings say."""
        self._wanted = wanted
        self._size = wanted
        self._most_held = 0

    @property
    def _fitting(self) -> int:
        return max(self._size, self._most_held)

    @property
    def measured(self) -> dict[str, tuple[float, ...]]:
        """What the receipt of a shard says of it: nothing where memory has held as many."""
        return {_MEASURED: (self._fitting,)} if self._fitting < self._wanted else {}

    def begin_shard(self) -> None:
        """Try as many as were held in the one before."""
        self._size, self._most_held = self._fitting, 0

    def in_batches(
        self, device: object, units: Sequence[A], work: Callable[[Sequence[A]], Sequence[T]]
    ) -> list[T]:
        """Work on units, and put together what comes of them.

        Args:
            device: what it runs on.
            units: in any number.
            work: done to some of them at once; leaves nothing behind if memory is full.

        Raises:
            DeviceMemoryFull: if a batch of one does not fit.
        """
        count = len(units)

        def at_once() -> list[T]:
            found = list(work(units))
            self._most_held = max(self._most_held, count)
            return found

        def in_parts(size: int) -> list[T]:
            self._size = size
            parts = (units[start : start + size] for start in range(0, count, size))
            return [found for part in parts for found in self.in_batches(device, part, work)]

        if count > self._size:
            return in_parts(self._size)
        return smaller_if_full(device, count, at_once, in_parts)


@lru_cache(maxsize=8)
def _batch_size(artifact: ArtifactRef, wanted: int) -> BatchSize:
    del artifact
    return BatchSize(wanted)


def batch_size_of(artifact: ArtifactRef, wanted: int) -> BatchSize:
    """That of the next shard of an artifact in this process, which is served by what earlier ones
    found out."""
    found = _batch_size(artifact, wanted)
    found.begin_shard()
    return found


def tell_of_reduced_batches(stage: Stage, shards: Iterable[ShardEntry], batch_size: int) -> None:
    """Say which batch size fits, if some shard found that the one that is given does not."""
    sizes = [size for shard in shards for size in shard.measurements.get(_MEASURED, ())]
    if (least := min(sizes, default=batch_size)) < batch_size:
        log.warning(
            "%s: the device's memory held batches of %d at most: --batch-size %d saves the time "
            "of trying",
            stage.value,
            least,
            least,
        )


def _full(device: object, batch_size: int) -> DeviceMemoryFull:
    return DeviceMemoryFull(f"the memory of device '{device}' does not hold {_remedy(batch_size)}")


def _remedy(batch_size: int) -> str:
    if batch_size == 1:
        return (
            "even a batch of 1: take a device with more memory or without others' work on it, "
            "spread the model over several (device_map), or load it in bfloat16; what is finished "
            "is kept"
        )
    return (
        f"a batch of {batch_size}: run again with a smaller one (--batch-size, or batch_size in "
        "the runtime settings), which changes no artifact's id; what is finished is kept"
    )
