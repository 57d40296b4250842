"""``sdrpn`` in a process of its own, which tells of every write and can be held before one.

Held processes wait for their SIGKILL, so a kill hits the very write that a test is about, however
fast or slow the machine is.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeVar

# Imported here so that the clean server has them and processes start in no time.
import flows.console
import flows.execution
import flows.run  # noqa: F401
from flows.cli import app
from tasks.storage.storage import Storage
from tests.fault_injection.processes import CONTEXT

T = TypeVar("T")

HELD = "held before"
WROTE = "wrote"


@dataclass(frozen=True)
class Hold:
    """Wait for ever before the ``number``-th write (from 1) of a key that matches."""

    pattern: str
    number: int = 1


@dataclass(frozen=True)
class FlowRun:
    """What a process did."""

    written: tuple[str, ...]
    """Keys in the order they were written."""
    held_before: str | None
    """The key it was about to write when it was killed; None if it ran to its end."""
    exit_code: int | None


def run_flow(arguments: list[str], hold: Hold | None, answer: Connection) -> None:
    """Body of the process: run ``sdrpn`` with these arguments and send what it writes."""
    watch = _Watch(hold, answer)
    Storage.put = watch.around(Storage.put)  # type: ignore[method-assign]
    Storage.create = watch.around(Storage.create)  # type: ignore[method-assign]
    os.environ.pop("PREFECT_API_URL", None)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        app(arguments, standalone_mode=False)


class _Watch:
    """Reports writes over a pipe; several threads may write at once."""

    def __init__(self, hold: Hold | None, answer: Connection) -> None:
        self._hold = hold
        self._answer = answer
        self._lock = threading.Lock()
        self._num_matches = 0

    def around(self, write: Callable[[Storage, str, bytes], T]) -> Callable[..., T]:
        def watched(storage: Storage, key: str, data: bytes) -> T:
            with self._lock:
                if self._is_here(storage, key):
                    self._answer.send((HELD, key))
                    threading.Event().wait()
            result = write(storage, key, data)
            if result is not False:  # a create-only write that found its key taken
                with self._lock:
                    self._answer.send((WROTE, key))
            return result

        return watched

    def _is_here(self, storage: Storage, key: str) -> bool:
        if self._hold is None or not re.search(self._hold.pattern, key):
            return False
        if storage.size(key) is not None:
            return False  # written by an earlier run: nothing happens here
        self._num_matches += 1
        return self._num_matches == self._hold.number


def execute(arguments: list[str], hold: Hold | None = None) -> FlowRun:
    """Run ``sdrpn`` in a process and, if it is to be held somewhere, kill it there with SIGKILL."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=run_flow, args=(arguments, hold, sender))
    process.start()
    sender.close()
    written, held_before = [], None
    with contextlib.suppress(EOFError):
        while held_before is None:
            what, key = receiver.recv()
            if what == HELD:
                held_before = key
            else:
                written.append(key)
    if held_before is not None:
        process.kill()
    process.join()
    return FlowRun(tuple(written), held_before, process.exitcode)
