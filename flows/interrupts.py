"""Ctrl-C that no library loses, and SIGTERM, by which schedulers stop a run, that ends it alike.

Python raises KeyboardInterrupt wherever the main thread happens to be. If that is in a call that a
library's Rust or C++ made, the library may make an error of its own of it (polars: TypeError), drop
it, or print pages about it (polars again). So it waits until polars has returned.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM, which Python leaves to the system: the process would end without a word."""


_STATUS = 128
"""Exit status after a signal: this and the signal's number."""
_heard: type[KeyboardInterrupt] | None = None
"""What came and has not ended its block yet."""
_USUAL: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}
"""Handlers of a process that has none of its own."""


@contextlib.contextmanager
def interrupts_heard() -> Iterator[None]:
    """End a block that fails after a Ctrl-C with KeyboardInterrupt, whatever came of it on the way;
    after a SIGTERM with Terminated.

    A block within another one answers for its own. One that comes to its end has done its work.
    Where the process has a handler of its own already, that one is left in its place.
    """
    global _heard
    before = _heard
    with _handled():
        try:
            yield
        except BaseException as error:  # also PanicException, which Rust makes of it
            if _heard is not None and not isinstance(error, _heard):
                raise _heard from error
            raise
        finally:
            _heard = before


def raise_lost_interrupt() -> None:
    """Raise the KeyboardInterrupt that was dropped, if one was: for loops that take long.

    Python raises none in other threads than the main one, so nothing is cut short there.
    """
    if _heard is not None and _is_main():
        raise _heard


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back for a moment; processes that are started meanwhile never see the
    first.

    A terminal sends it to workers too, which would each print a traceback of its own, or never end.
    """
    held: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # for the new processes
    handlers: dict[signal.Signals, Any] = {}
    if _is_main():  # here the mask is not enough: other threads take the signal for this one
        for one in _USUAL:
            if one == signal.SIGTERM and signal.getsignal(one) is not _hear:
                continue  # Prefect's runner asks whether its own is there
            handlers[one] = signal.signal(one, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for one, handler in handlers.items():
            signal.signal(one, handler)
        if held:
            signal.raise_signal(held[0])


def end_of(error: KeyboardInterrupt) -> tuple[str, int]:
    """What to say of a process that it ended, and the exit status that shells expect of it."""
    if isinstance(error, Terminated):
        return "terminated", _STATUS + signal.SIGTERM
    return "interrupted", _STATUS + signal.SIGINT


def _is_main() -> bool:
    """Whether this is the thread that has the handlers of signals."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def _handled() -> Iterator[None]:
    tell = sys.unraisablehook
    # In the background of a script, Ctrl-C is ignored, and SIGTERM is not.
    ours = [number for number, usual in _USUAL.items() if signal.getsignal(number) == usual]
    if not _is_main() or not ours:
        yield
        return

    def tell_others(dropped: "sys.UnraisableHookArgs") -> None:
        if not (_heard is not None and issubclass(dropped.exc_type, KeyboardInterrupt)):
            tell(dropped)

    for number in ours:
        signal.signal(number, _hear)
    sys.unraisablehook = tell_others
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, _USUAL[number])
        sys.unraisablehook = tell


def _hear(number: int, frame: FrameType | None) -> None:
    global _heard
    _heard = Terminated if number == signal.SIGTERM else KeyboardInterrupt
    if number == signal.SIGTERM:  # a second one ends what is stuck in a library
        signal.signal(number, signal.SIG_DFL)
    caller = _caller_of_polars(frame)
    if caller is None or sys.gettrace() is not None:  # a debugger's, or ours: the second Ctrl-C
        raise _heard
    _raise_in(caller)


def _caller_of_polars(frame: FrameType | None) -> FrameType | None:
    """The function that waits for polars, if one does."""
    caller = None
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] == "polars":
            caller = frame.f_back
        frame = frame.f_back
    return caller


def _raise_in(caller: FrameType) -> None:
    """Raise what was heard at the function's next line, or where it ends."""

    def step(frame: FrameType, event: str, argument: Any) -> None:
        sys.settrace(None)
        del caller.f_trace
        raise_lost_interrupt()

    caller.f_trace = step
    sys.settrace(lambda *_: None)  # or Python looks at no function's
