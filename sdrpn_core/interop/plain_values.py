"""What a pickle of plain data may name, built by functions of our own.

What NumPy would do with a hand-made dtype or shape is not tried: types must be numbers or text, and
an array must have the bytes that its shape says. No function makes more of its arguments than they
are long.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMERIC_OR_TEXT = re.compile(r"[<>|=]?([biufc][0-9]{1,2}|[SU][0-9]{1,7})")
_ORDERS = ("<", ">", "|", "=")
_MAX_AXES = 64
_MAX_KEY_PARTS = 16


class Refused(Exception):
    """Qualified name of what a pickle must not name."""


class DtypeMade:
    """An element type on its way; pickles give the byte order after the rest."""

    __slots__ = ("order", "spec")

    def __init__(self, spec: object, align: object = False, copy: object = True) -> None:
        del align, copy
        if not isinstance(spec, str) or not _NUMERIC_OR_TEXT.fullmatch(spec):
            raise Refused(f"numpy.dtype({shown(spec)})")
        self.spec = spec.lstrip("<>|=")
        self.order = spec[: -len(self.spec)]

    def set_state(self, state: tuple[Any, ...]) -> None:
        """What pickles tell after the type is made."""
        if any(part is not None for part in state[2:5]):
            raise Refused(f"numpy.dtype({self.spec!r}) with fields")
        if state[1] not in _ORDERS:
            raise ValueError("a type without a byte order")
        self.order = state[1]

    def build(self) -> np.dtype[Any]:
        """The type itself."""
        return np.dtype(f"{self.order}{self.spec}")


class ArrayMade:
    """An array on its way; pickles give its content after it is made."""

    __slots__ = ("value",)

    def __init__(self, kind: object = None, shape: object = (0,), code: object = b"b") -> None:
        del kind, shape, code  # always those of an empty array
        self.value: NDArray[Any] = np.zeros(0)

    def set_state(self, state: tuple[Any, ...]) -> None:
        """What pickles tell after the array is made."""
        _, shape, dtype, is_fortran, data = state
        self.value = _array(data, dtype, shape, "F" if is_fortran else "C")


def shown(value: object) -> str:
    """What is to be text, for a message. The text of a container may be of any length."""
    return repr(value) if isinstance(value, str) else f"a {type(value).__name__}"


def as_key(value: Any) -> Any:
    """A key of a dictionary, or a member of a set.

    Tuples in tuples are none: a few bytes nest them so deep that their hash overflows the stack of
    the interpreter, or share them so often that it is never done.
    """
    parts = value if isinstance(value, tuple) else (value,)
    if len(parts) > _MAX_KEY_PARTS or not all(map(_is_simple, parts)):
        raise ValueError("a key that is no text, no number and no short tuple of them")
    return value


def as_set(items: Iterable[Any] = ()) -> set[Any]:
    """A set of keys."""
    return set(map(as_key, items))


def as_frozenset(items: Iterable[Any] = ()) -> frozenset[Any]:
    """A set of keys that does not change."""
    return frozenset(map(as_key, items))


def as_dict(items: Iterable[Any] = ()) -> dict[Any, Any]:
    """A dictionary of pairs."""
    return {as_key(key): value for key, value in items}


def _is_simple(value: object) -> bool:
    if isinstance(value, int):
        return _fits_64_bits(value)
    return value is None or isinstance(value, str | bytes | float | complex)


def _fits_64_bits(value: int) -> bool:
    return -(1 << 63) <= value < 1 << 64


def _array(data: object, dtype: object, shape: object, order: str = "C") -> NDArray[Any]:
    """Elements of a buffer, which must be exactly those of the shape."""
    if not isinstance(dtype, DtypeMade) or not isinstance(data, bytes | bytearray):
        raise ValueError("an array without type or content")
    if not isinstance(shape, tuple) or len(shape) > _MAX_AXES or not all(map(_is_length, shape)):
        raise ValueError("an array of a shape that is none")
    kind = dtype.build()
    if len(data) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"an array of shape {shape} and type {kind} with {len(data)} bytes")
    return np.frombuffer(bytes(data), kind).reshape(shape, order="F" if order == "F" else "C")


def _is_length(value: object) -> bool:
    return isinstance(value, int) and value >= 0 and _fits_64_bits(value)


def _scalar(dtype: object, data: object) -> Any:
    return _array(data, dtype, (1,))[0].item()


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Old protocols write bytes as text; any other codec is none of theirs."""
    if encoding != "latin1":
        raise Refused(f"_codecs.encode with codec {shown(encoding)}")
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


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        f"{module}.{kind}": build
        for module in ("builtins", "__builtin__")  # protocols below 3 use Python 2's name
        for kind, build in (
            ("set", as_set),
            ("frozenset", as_frozenset),
            ("bytes", _bytes),
            ("bytearray", _bytearray),
            ("complex", complex),
        )
    },
    "collections.OrderedDict": as_dict,
    "_codecs.encode": _latin1,
    "numpy.dtype": DtypeMade,
    "numpy.ndarray": ArrayMade,
    # NumPy 2 moved its internals, and pickles name them.
    "numpy.core.multiarray._reconstruct": ArrayMade,
    "numpy._core.multiarray._reconstruct": ArrayMade,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array,
    "numpy._core.numeric._frombuffer": _array,
}
"""By the names that pickles give them."""
