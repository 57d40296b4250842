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
    """End the block with KeyboardInterrupt after a Ctrl-C, whatever came of it on the way.

    A block within another one answers for its own. Where the process has a handler of Ctrl-C
    already (Prefect's, a test's), that one is left in its place.
    """
    global _is_heard
    with _handled():
        try:
            yield
        except BaseException as error:  # also PanicException, which Rust makes of it
            if _is_heard and not isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise
        finally:
            _is_heard = False


def raise_lost_interrupt() -> None:
    """Raise the KeyboardInterrupt that was dropped, if one was: for loops that take long."""
    if _is_heard:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _handled() -> Iterator[None]:
    before, tell = signal.getsignal(signal.SIGINT), sys.unraisablehook
    is_main = threading.current_thread() is threading.main_thread()  # no other may set a handler
    if not is_main or before is not signal.default_int_handler:
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
