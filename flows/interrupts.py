"""Ctrl-C that no library loses.

Python raises KeyboardInterrupt wherever the main thread happens to be. If that is in a call that a
library's Rust or C++ made, the library may make an error of its own of it (polars: TypeError), or
drop it.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_is_heard = False
"""Whether a Ctrl-C came that has not ended its block yet."""


@contextlib.contextmanager
def interrupts_heard() -> Iterator[None]:
    """End a block that fails after a Ctrl-C with KeyboardInterrupt, whatever came of it on the way.

    A block within another one answers for its own. One that comes to its end has done its work.
    Where the process has a handler of Ctrl-C already, that one is left in its place.
    """
    global _is_heard
    before = _is_heard
    with _handled():
        try:
            yield
        except BaseException as error:  # also PanicException, which Rust makes of it
            if _is_heard and not isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise
        finally:
            _is_heard = before


def raise_lost_interrupt() -> None:
    """Raise the KeyboardInterrupt that was dropped, if one was: for loops that take long.

    Python raises none in other threads than the main one, so nothing is cut short there.
    """
    if _is_heard and _is_main():
        raise KeyboardInterrupt


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back for a moment; processes that are started meanwhile never see it.

    A terminal sends it to workers too, which would each print a traceback of its own, or never end.
    """
    held: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # for the new processes
    if _is_main():  # here the mask is not enough: other threads take the signal for this one
        handler = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if _is_main():
            signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


def _is_main() -> bool:
    """Whether this is the thread that has the handlers of signals."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def _handled() -> Iterator[None]:
    before, tell = signal.getsignal(signal.SIGINT), sys.unraisablehook
    if not _is_main() or before is not signal.default_int_handler:
        yield
        return

    def tell_others(dropped: "sys.UnraisableHookArgs") -> None:
        if not (_is_heard and dropped.exc_type is KeyboardInterrupt):
            tell(dropped)

    signal.signal(signal.SIGINT, _hear)
    sys.unraisablehook = tell_others
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = tell


def _hear(number: int, frame: FrameType | None) -> None:
    global _is_heard
    _is_heard = True
    raise KeyboardInterrupt
