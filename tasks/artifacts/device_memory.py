"""What a device's memory does not hold, said with the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

from data_contracts.errors import SdrpnError
from data_contracts.runtime import RuntimeConfig
from sdrpn_core.device_memory import is_out_of_memory


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
        raise DeviceMemoryFull(
            f"the memory of device {runtime.device!r} does not hold {_remedy(runtime.batch_size)}"
        ) from error


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
