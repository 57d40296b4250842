"""For what must not hang: a deadlock fails a test instead of stopping all."""

import faulthandler
import threading
import time
from collections.abc import Callable, Iterator

PATIENCE_SECONDS = 120.0


def wait_until(is_true: Callable[[], bool]) -> None:
    """Ask again and again; fails if it does not become true."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_true():
        assert time.monotonic() < end, f"not so after {PATIENCE_SECONDS:.0f} s"
        time.sleep(0.01)


class LeftInCycle:
    """Keeps a generator that was begun and is never closed: only garbage collection ends both."""

    def __init__(self, begun: Iterator[object]) -> None:
        self.itself = self
        self.begun = begun
        next(begun)


def done_in_time(work: Callable[[], None]) -> None:
    """Do it in a thread; fails, with the stacks of all threads, if it does not end."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  (raised again below)
            errors.append(error)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    worker.join(PATIENCE_SECONDS)
    if worker.is_alive():
        faulthandler.dump_traceback()
        raise AssertionError(f"hangs: not done after {PATIENCE_SECONDS:.0f} s")
    if errors:
        raise errors[0]
