"""Where a model runs and in which precision, as settings name it and as torch does."""

from collections.abc import Mapping
from typing import get_args

import torch
from transformers.utils import is_accelerate_available

from data_contracts.configs import Precision
from sdrpn_core.models.errors import ModelError, UnknownChoice

DeviceMap = str | Mapping[str, int | str]
"""Module -> device, or a rule for making such a map."""

_RULES = ("auto", "balanced", "balanced_low_0", "sequential")
_NOT_COMPUTED_ON = {"disk", "meta"}
DTYPES: tuple[str, ...] = get_args(Precision)
_CHOICE = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"


def resolve_device(device: str) -> torch.device:
    """``auto`` takes the first CUDA device where there is one, else the CPU.

    Raises:
        UnknownChoice: if that is no device's name.
        ModelError: if there is no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    named = named_device(device)
    try:
        torch.empty(0, device=named)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(_unusable(device, str(error))) from error
    return named


def named_device(device: str) -> torch.device:
    """A device of this name, of whatever machine, that computes.

    Raises:
        UnknownChoice: if that is no device's name.
    """
    try:
        named = torch.device(device)
    except RuntimeError as error:
        raise UnknownChoice(_unusable(device, str(error))) from error
    if named.type in _NOT_COMPUTED_ON:
        raise UnknownChoice(_unusable(device, "nothing is computed there"))
    return named


def _unusable(device: str, reason: str) -> str:
    return (
        f"device {device!r} cannot be used ({reason.strip().splitlines()[0]}): choose auto, cpu, "
        "or cuda:N of a GPU that `nvidia-smi` lists"
    )


def check_device_map(device_map: DeviceMap) -> None:
    """Refuse a map that nobody here can follow: of no module, or to a device that is not there.

    Raises:
        ModelError: naming the first such device, or the package that is missing.
    """
    if not is_accelerate_available():
        raise ModelError(
            "device_map needs the package accelerate: run `pip install 'sdrpn[multi-gpu]'`, or "
            "remove device_map from the runtime settings"
        )
    for device in _devices_of(device_map):
        resolve_device(device)


def check_device_map_names(device_map: DeviceMap) -> None:
    """Refuse a map that no machine can follow.

    Raises:
        UnknownChoice: if it is of no module, or naming what is no device.
    """
    for device in _devices_of(device_map):
        named_device(device)


def _devices_of(device_map: DeviceMap) -> list[str]:
    """Devices that a map names, but those where nothing is computed.

    Raises:
        UnknownChoice: if it is empty.
    """
    if isinstance(device_map, str):  # a rule, or one device for all modules
        return [] if device_map in _RULES else [device_map]
    if not device_map:
        raise UnknownChoice(
            "device_map is empty: map '' to a device for the whole model, or use auto"
        )
    devices = dict.fromkeys(map(str, device_map.values()))
    return [f"cuda:{d}" if d.isdecimal() else d for d in devices if d not in _NOT_COMPUTED_ON]


def resolve_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a name.

    Raises:
        UnknownChoice: if models do not run in it.
    """
    if dtype not in DTYPES:
        raise UnknownChoice(f"dtype {dtype!r} is not known: choose {_CHOICE}")
    resolved: torch.dtype = getattr(torch, dtype)
    return resolved


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a torch dtype: ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def answering_dtype(trained: str, device: torch.device) -> str:
    """Precision to answer in where the user names none: the RPN's own on a GPU, else float32.

    Args:
        trained: precision of the RPN's weights, which is that of the model it was trained beside.
        device: where the model will run.
    """
    return trained if device.type == "cuda" else "float32"
