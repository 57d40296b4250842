"""What a device's memory does not hold: done in smaller batches, or said with the remedy."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from data_contracts.errors import SdrpnError
from data_contracts.runtime import RuntimeConfig
from sdrpn_core.device_memory import is_out_of_memory

T = TypeVar("T")

log = logging.getLogger(__name__)


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
