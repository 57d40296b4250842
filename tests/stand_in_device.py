"""A torch device that stands in for a GPU: its tensors lie in host memory, and mixing them fails.

``python -m pytest -p tests.stand_in_device tests/gpu`` runs the GPU's tests where there is none. An
operation on tensors here and on the CPU raises, as on a GPU, and so does NumPy's look at a tensor
here; numbers are the CPU's. What the stand-in cannot show is in the tests that ask for ``cuda``:
graphs, memory, speed.

It is made of torch's experimental Python backends and holds for the whole process: use one of its
own. Differences from a real device: inference mode is ``no_grad``, as tensors of Python backends
know no other, and modules get new parameters when they are converted.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils import backend_registration
from torch.utils._device import _device_constructors

NAME = "elsewhere"
_DEVICE = f"{NAME}:0"

_aten = torch.ops.aten
_TAKE_FROM_ANYWHERE = {_aten._to_copy, _aten.copy_, _aten._copy_from}
_TAKE_INDICES_FROM_ANYWHERE = {_aten.index, _aten.index_put, _aten.index_put_}


class StandInTensor(Tensor):
    """Says that it is on the device, and keeps what it holds in a tensor on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "StandInTensor":
        """Of the tensor to keep."""
        made: StandInTensor = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(_DEVICE),
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        """As on a GPU; torch refuses it for subclasses."""
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Raises, as on a GPU."""
        raise TypeError(f"a tensor on {_DEVICE} is no array: use Tensor.cpu() first")

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            args = _with_tensors_of_lists(args)
        if function is one_hot:  # torch would make it of a range that it lengthens in place
            return _run(_aten.one_hot.default, *args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(operation, *args, **(kwargs or {}))


def _with_tensors_of_lists(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Make tensors of indices and values; torch would do so out of a Python backend's reach."""
    target, key, *value = args
    keys = [
        torch.tensor(part, device=_DEVICE) if isinstance(part, list | np.ndarray) else part
        for part in (key if isinstance(key, tuple) else (key,))
    ]
    if value and not isinstance(value[0], Tensor):
        value = [StandInTensor(torch.tensor(value[0], dtype=target.dtype))]
    return (target, tuple(keys), *value)


def _run(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation of the dispatcher on what the tensors hold."""
    packet = operation.overloadpacket
    # Indices may come from anywhere; torch moves them itself.
    own = (args[0], *args[2:]) if packet in _TAKE_INDICES_FROM_ANYWHERE else args
    tensors = _tensors_of((own, *kwargs.values()))
    if packet not in _TAKE_FROM_ANYWHERE:
        _check_places(packet, tensors)
    target = kwargs.get("device")
    if target is not None:
        kwargs["device"] = torch.device("cpu")
    held = {name: _held(value) for name, value in kwargs.items()}
    run = _histogram if packet is _aten.histc else operation
    result = run(*_held(args), **held)
    if target is not None and torch.device(target).type == "cpu":
        return result
    known = {id(t.held): t for t in tensors if isinstance(t, StandInTensor)}
    return _mapped(lambda t: _placed(t, known), result)


def _histogram(values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Of whole numbers too, as on a GPU: the CPU counts fractions only."""
    return torch.histc(values.double(), *args, **kwargs).to(values.dtype)


def _placed(result: Tensor, known: dict[int, StandInTensor]) -> StandInTensor:
    """A result as a tensor on the device: the one that was given, if it was changed in place."""
    given = known.get(id(result))
    if given is None:
        return StandInTensor(result)
    if given.shape != result.shape:
        raise NotImplementedError("the stand-in device cannot change a tensor's shape in place")
    return given


def _mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    """A function of the tensors among arguments or results: operations know lists, not trees."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([_mapped(function, item) for item in value])
    return value


def _tensors_of(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(found.append, value)
    return found


def _held(value: Any) -> Any:
    return _mapped(lambda t: t.held if isinstance(t, StandInTensor) else t, value)


def _check_places(operation: Any, tensors: list[Tensor]) -> None:
    """Refuse tensors on the CPU, but for numbers, which torch moves itself."""
    elsewhere = [t for t in tensors if not isinstance(t, StandInTensor) and t.dim() > 0]
    if elsewhere:
        shape = tuple(elsewhere[0].shape)
        raise RuntimeError(f"{operation}: a {shape} on {elsewhere[0].device}, others on {_DEVICE}")


def _made_on_the_cpu(constructor: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A constructor that Python backends cannot serve, by way of the CPU."""

    def construct(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None:
            return constructor(*args, **kwargs)
        if torch.device(device).type != NAME:
            return constructor(*args, device=device, **kwargs)
        return constructor(*_held(args), **kwargs).to(device)

    return construct


def _enter_without_gradients(mode: torch.inference_mode) -> None:
    context: AbstractContextManager[None] = torch.no_grad() if mode.mode else nullcontext()
    mode._inference_mode_context = context  # type: ignore[assignment]
    context.__enter__()


class _Backend(backend_registration._DummyBackendModule):
    """What autocast asks of a device."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @staticmethod
    def is_autocast_enabled() -> bool:
        return False


def _install() -> torch.library.Library:
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    _device_constructors()  # remembers the constructors as they are, which ``torch.device`` needs
    for name in ("tensor", "as_tensor", "arange", "linspace"):
        setattr(torch, name, _made_on_the_cpu(getattr(torch, name)))
    torch.inference_mode.__enter__ = _enter_without_gradients  # type: ignore[method-assign]
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    library = torch.library.Library("_", "IMPL")
    library.fallback(_run, "PrivateUse1")
    return library


_LIBRARY = _install()
"""Operations go with it, so it is kept."""
