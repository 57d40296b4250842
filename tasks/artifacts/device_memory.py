"""What a device's memory does not hold, said with the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

from data_contracts.errors import SdrpnError
from data_contracts.runtime import RuntimeConfig


class DeviceMemoryFull(SdrpnError):
    """A batch does not fit into the memory of the device."""


@contextmanager
def device_memory_explained(runtime: RuntimeConfig) -> Iterator[None]:
    """Turn torch's error into one that names the setting to change.

    Raises:
        DeviceMemoryFull: instead of ``torch.OutOfMemoryError``.
    """
    try:
        yield
    except RuntimeError as error:
        # By name: stages without a model do without torch.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise DeviceMemoryFull(
            f"the memory of device {runtime.device!r} does not hold a batch of "
            f"{runtime.batch_size}: run again with a smaller one (--batch-size, or batch_size in "
            "the runtime settings), which changes no artifact's id; what is finished is kept"
        ) from error
