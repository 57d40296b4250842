"""Imports without garbage collection, which takes a third of the time that loading torch takes.

The collector runs again and again over the hundreds of thousands of objects that imports make, and
once more when the process ends. None of them is garbage: they stay as long as the process.
"""

import contextlib
import gc
import sys
from collections.abc import Iterator


def begin_imports() -> None:
    """Collect nothing until ``end_imports``."""
    gc.disable()


def end_imports() -> None:
    """Collect again, but never look at what is there now."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Let the block import; does nothing where torch has been loaded already.

    There, little is left to import, and what is there now is not imports alone: of a model in it,
    the memory would never come back.
    """
    if "torch" in sys.modules:
        yield
        return
    begin_imports()
    try:
        yield
    finally:
        end_imports()
