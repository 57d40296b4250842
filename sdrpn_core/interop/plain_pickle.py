"""Reading pickles of plain data without running anything that they name.

A pickle is a program: an ordinary unpickler calls whatever it names. This one knows plain
containers and NumPy arrays, dtypes and scalars, builds even those with functions of its own, and
refuses every other name. What NumPy would do with a hand-made dtype or shape is not tried either:
types must be numbers or text, and an array must have the bytes that its shape says.
"""

import io
import math
import pickle  # the one place that reads pickles
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_contracts.errors import SdrpnError, one_line

_LFS_POINTER = b"version https://git-lfs"
_NUMERIC_OR_TEXT = re.compile(r"[<>|=]?([biufc][0-9]{1,2}|[SU][0-9]{1,7})")


class UnreadablePickle(SdrpnError):
    """Bytes that are not a whole pickle of plain data."""


class RefusedPickle(UnreadablePickle):
    """A pickle that names something other than plain data."""


def load_plain(data: bytes, origin: str) -> Any:
    """Read a pickle made of plain containers, text, numbers and NumPy arrays.

    Args:
        data: the whole file.
        origin: what error messages call it.

    Returns:
        Plain Python data; arrays are read-only, NumPy scalars become Python's.

    Raises:
        RefusedPickle: if it names anything else, with that name.
        UnreadablePickle: if it is not a pickle, is cut short or damaged.
    """
    if data.startswith(_LFS_POINTER):
        raise UnreadablePickle(
            f"{origin}: a Git LFS pointer, not the file itself; download it with `hf download`"
        )
    try:
        return _resolved(_PlainUnpickler(io.BytesIO(data)).load(), {})
    except _Refused as refusal:
        raise RefusedPickle(
            f"{origin}: refused, because it names {refusal}, which is neither plain data nor a "
            "NumPy array: loading it could run code; get the file from its authors again"
        ) from None
    except Exception as error:  # damaged pickles raise nearly anything
        raise UnreadablePickle(f"{origin}: {_explain(data, error)}") from error


class _Refused(Exception):
    """Qualified name of what a pickle must not name."""


class _Function:
    """A function that a pickle may call but can neither inspect nor change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise ValueError("a function has no state")


class _Dtype:
    """An element type on its way; pickles give the byte order after the rest."""

    __slots__ = ("order", "spec")

    def __init__(self, spec: object, align: object = False, copy: object = True) -> None:
        del align, copy
        if not isinstance(spec, str) or not _NUMERIC_OR_TEXT.fullmatch(spec):
            raise _Refused(f"numpy.dtype({spec!r})")
        self.spec = spec.lstrip("<>|=")
        self.order = spec[: -len(self.spec)]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if any(part is not None for part in state[2:5]):
            raise _Refused(f"numpy.dtype({self.spec!r}) with fields")
        self.order = state[1]

    def build(self) -> np.dtype[Any]:
        return np.dtype(f"{self.order}{self.spec}")


class _Array:
    """An array on its way; pickles give its content after it is made."""

    __slots__ = ("value",)

    def __init__(self, kind: object = None, shape: object = (0,), code: object = b"b") -> None:
        del kind, shape, code  # always those of an empty array
        self.value: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = _array(data, dtype, shape, "F" if is_fortran else "C")


def _array(data: object, dtype: object, shape: object, order: str = "C") -> NDArray[Any]:
    """Elements of a buffer, which must be exactly those of the shape."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
        raise ValueError("an array without type or content")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"an array of shape {shape!r}")
    kind = dtype.build()
    if len(data) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"an array of shape {shape} and type {kind} with {len(data)} bytes")
    return np.frombuffer(bytes(data), kind).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: object, data: object) -> Any:
    return _array(data, dtype, (1,))[0].item()


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Old protocols write bytes as text; any other codec is none of theirs."""
    if encoding != "latin1":
        raise _Refused(f"_codecs.encode with codec {encoding!r}")
    return text.encode("latin1")


def _bytes(data: object = b"", encoding: str = "latin-1") -> bytes:
    """Bytes of given content; a bare length, which could be any, is not content."""
    if isinstance(data, str) and encoding == "latin-1":
        return data.encode("latin-1")
    if not isinstance(data, bytes):
        raise ValueError("bytes without content")
    return data


def _bytearray(data: object = b"", encoding: str = "latin-1") -> bytearray:
    return bytearray(_bytes(data, encoding))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        f"{module}.{kind}": build
        for module in ("builtins", "__builtin__")  # protocols below 3 use Python 2's name
        for kind, build in (
            ("set", set),
            ("frozenset", frozenset),
            ("bytes", _bytes),
            ("bytearray", _bytearray),
            ("complex", complex),
        )
    },
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _latin1,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    # NumPy 2 moved its internals, and pickles name them.
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array,
    "numpy._core.numeric._frombuffer": _array,
}


class _PlainUnpickler(pickle.Unpickler):
    """Resolves the names of plain data and no others."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = f"{module_name}.{global_name}"
        if name not in _FUNCTIONS:
            raise _Refused(name)
        return _Function(_FUNCTIONS[name])

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"persistent id {pid!r}")


def _resolved(value: Any, known: dict[int, Any]) -> Any:
    """The same data with arrays in place of what was read of them.

    Args:
        value: what was read.
        known: id of what was read -> the same resolved. A few bytes can name one list a million
            times over; what is shared stays shared, and is resolved once.
    """
    if id(value) not in known:
        known[id(value)] = _resolved_once(value, known)
    return known[id(value)]


def _resolved_once(value: Any, known: dict[int, Any]) -> Any:
    match value:
        case _Array():
            return value.value
        case dict():
            return {_resolved(k, known): _resolved(item, known) for k, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return type(value)(_resolved(item, known) for item in value)
        case _Dtype():
            return value.build()
        case _Function():
            raise ValueError("a function where data belongs")
        case _:
            return value


def _explain(data: bytes, error: Exception) -> str:
    if not data:
        return "the file is empty; download it again"
    is_cut = isinstance(error, EOFError) or "truncated" in str(error)
    if data[:1] != b"\x80":
        return "not a pickle; give the authors' .pkl file"
    if is_cut or not data.endswith(b"."):
        return "the pickle is cut short; download it again"
    reason = one_line(error)
    return f"a damaged pickle ({reason}); download it again"
