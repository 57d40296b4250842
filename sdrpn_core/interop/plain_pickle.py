"""Reading pickles of plain data without running anything that they name.

A pickle is a program: an ordinary unpickler calls whatever it names, and makes as much of a few
bytes as they ask for. Here the standard library only tells the instructions apart. What they do is
done below, with plain containers and what ``plain_values`` builds; every other name is refused.
Time and memory stay in proportion to the file.
"""

import pickletools
from collections.abc import Callable, Sequence
from typing import Any

from data_contracts.errors import SdrpnError, one_line
from sdrpn_core.interop.plain_values import (
    FUNCTIONS,
    ArrayMade,
    DtypeMade,
    Refused,
    as_dict,
    as_frozenset,
    as_set,
    shown,
)

_LFS_POINTER = b"version https://git-lfs"
_MAX_COPIES = 4
"""Of the whole file, by calls: an honest pickle writes out all that it calls anything with."""
_FREE = 64
"""Length up to which nothing counts as copied: what is as short is named once for all calls."""
_MAX_SHOWN = 200
_CUT_SHORT = ("exhausted", "remain", "not enough data", "no newline")
"""How the standard library says that an instruction is not whole."""


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
        Plain Python data; arrays are read-only, NumPy scalars become Python's, ordered
        dictionaries plain ones.

    Raises:
        RefusedPickle: if it names anything else, with that name.
        UnreadablePickle: if it is not a pickle, is cut short or damaged.
    """
    if data.startswith(_LFS_POINTER):
        raise UnreadablePickle(
            f"{origin}: a Git LFS pointer, not the file itself; download it with `hf download`"
        )
    try:
        return _resolved(_Machine(_MAX_COPIES * len(data)).run(data), {})
    except Refused as refusal:
        raise RefusedPickle(
            f"{origin}: refused, because it names {_cut(str(refusal))}, which is neither plain "
            "data nor a NumPy array: loading it could run code; get the file from its authors again"
        ) from None
    except Exception as error:  # damaged pickles raise nearly anything
        raise UnreadablePickle(f"{origin}: {_explain(data, error)}") from error


class _Function:
    """A function that a pickle may call, and do nothing else with."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


class _Machine:
    """The stack machine that a pickle is a program for."""

    def __init__(self, num_to_copy: int) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        """What marks put aside."""
        self._memo: dict[int, Any] = {}
        self._num_to_copy = num_to_copy
        """Items and bytes that calls may still be given."""

    def run(self, data: bytes) -> Any:
        """What the program leaves."""
        for instruction, argument, _ in pickletools.genops(data):
            name = instruction.name
            if name in _PUSHED:
                self._stack.append(argument)
            elif name in _MADE:
                self._stack.append(_MADE[name]())
            elif name in _OF_ARGUMENT:
                _OF_ARGUMENT[name](self, argument)
            elif name in _OF_STACK:
                _OF_STACK[name](self)
            else:
                raise ValueError(f"instruction {name}, which plain data has no use for")
        return self._stack.pop()

    def push_ascii(self, text: str) -> None:
        """Bytes of Python 2, of which nobody knows whether they are text."""
        self._stack.append(text.encode("latin1").decode("ascii"))

    def push_global(self, name: str) -> None:
        """A function of ours, by its module's name, a space and its own."""
        self._name(name.replace(" ", ".", 1))

    def push_stacked_global(self) -> None:
        """A function of ours, by the two names on the stack."""
        module, name = self._take(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        self._name(f"{module}.{name}")

    def _name(self, name: str) -> None:
        if name not in FUNCTIONS:
            raise Refused(name)
        self._stack.append(_Function(FUNCTIONS[name]))

    def refuse_id(self, pid: object) -> None:
        """An object that is kept elsewhere."""
        raise Refused(f"persistent id {shown(pid)}")

    def refuse_stacked_id(self) -> None:
        """An object that is kept elsewhere, by the id on the stack."""
        self.refuse_id(self._take(1)[0])

    def put(self, index: int) -> None:
        """Remember the last value."""
        self._memo[index] = self._stack[-1]

    def memoize(self) -> None:
        """Remember the last value under the next number."""
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        """Push a remembered value."""
        self._stack.append(self._memo[index])

    def mark(self) -> None:
        """Put the stack aside: items of a container follow."""
        self._below.append(self._stack)
        self._stack = []

    def pop(self) -> None:
        """Forget the last value, or the last mark."""
        if self._stack:
            self._stack.pop()
        else:
            self._items()

    def pop_items(self) -> None:
        """Forget what follows the last mark."""
        self._items()

    def duplicate(self) -> None:
        """Push the last value again."""
        self._stack.append(self._stack[-1])

    def collect(self, build: Callable[[list[Any]], Any]) -> None:
        """Push a container of what follows the last mark."""
        built = build(self._items())
        self._stack.append(built)

    def pack(self, count: int) -> None:
        """Push a tuple of the last values."""
        self._stack.append(tuple(self._take(count)))

    def append(self) -> None:
        """The last value into the list before it."""
        (item,) = self._take(1)
        self._filled(list).append(item)

    def append_items(self) -> None:
        """What follows the last mark into the list before it."""
        items = self._items()
        self._filled(list).extend(items)

    def add_items(self) -> None:
        """What follows the last mark into the set before it."""
        items = self._items()
        self._filled(set).update(as_set(items))

    def set_item(self) -> None:
        """The last two values, a key and its value, into the dictionary before them."""
        pair = self._take(2)
        self._filled(dict).update(_pairs(pair))

    def set_items(self) -> None:
        """What follows the last mark into the dictionary before it."""
        items = self._items()
        self._filled(dict).update(_pairs(items))

    def call(self) -> None:
        """Push what a function makes of a tuple of arguments."""
        function, arguments = self._take(2)
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise ValueError("a call of what is no function")
        lengths = [len(value) for value in arguments if hasattr(value, "__len__")]
        self._num_to_copy -= sum(length for length in lengths if length > _FREE)
        if self._num_to_copy < 0:
            raise ValueError("a few bytes that are to become many")
        self._stack.append(function.call(*arguments))

    def set_state(self) -> None:
        """Give the array or the type before it what the last value says of it."""
        (state,) = self._take(1)
        made = self._stack[-1]
        if not isinstance(made, ArrayMade | DtypeMade) or not isinstance(state, tuple):
            raise ValueError(f"a state for a {type(made).__name__}")
        made.set_state(state)

    def _items(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _take(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("too few values")
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def _filled(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise ValueError(f"items for a {type(self._stack[-1]).__name__}")
        return self._stack[-1]


def _pairs(items: Sequence[Any]) -> dict[Any, Any]:
    """A dictionary of keys and values in turn."""
    return as_dict(zip(items[::2], items[1::2], strict=True))


_PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_OF_ARGUMENT: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.push_ascii),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": _Machine.push_global,
    "PERSID": _Machine.refuse_id,
}
_OF_STACK: dict[str, Callable[[_Machine], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine: None),
    "MEMOIZE": _Machine.memoize,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_items,
    "DUP": _Machine.duplicate,
    "LIST": lambda machine: machine.collect(list),
    "TUPLE": lambda machine: machine.collect(tuple),
    "DICT": lambda machine: machine.collect(_pairs),
    "FROZENSET": lambda machine: machine.collect(as_frozenset),
    "TUPLE1": lambda machine: machine.pack(1),
    "TUPLE2": lambda machine: machine.pack(2),
    "TUPLE3": lambda machine: machine.pack(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_items,
    "ADDITEMS": _Machine.add_items,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "STACK_GLOBAL": _Machine.push_stacked_global,
    "BINPERSID": _Machine.refuse_stacked_id,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.set_state,
}


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
        case ArrayMade():
            return value.value
        case dict():
            return {_resolved(k, known): _resolved(item, known) for k, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return type(value)(_resolved(item, known) for item in value)
        case DtypeMade():
            return value.build()
        case _Function():
            raise ValueError("a function where data belongs")
        case _:
            return value


def _explain(data: bytes, error: Exception) -> str:
    if not data:
        return "the file is empty; download it again"
    if data[:1] != b"\x80":
        return "not a pickle; give the authors' .pkl file"
    reason = one_line(error)
    if not data.endswith(b".") or any(words in reason for words in _CUT_SHORT):
        return "the pickle is cut short; download it again"
    return f"a damaged pickle ({_cut(reason)}); download it again"


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
