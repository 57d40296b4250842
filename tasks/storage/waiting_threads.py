"""Many calls that wait on somebody else, a disk or a server, at once."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from sdrpn_core.threads import SECONDS_BETWEEN_LOOKS

A = TypeVar("A")
T = TypeVar("T")

_NUM_THREADS = 16


def in_parallel(
    function: Callable[[A], T],
    arguments: Iterable[A],
    num_threads: int = _NUM_THREADS,
    on_look: Callable[[], None] = lambda: None,
) -> list[T]:
    """Apply a function that mostly waits to many arguments; results in their order.

    ``on_look`` is called now and then meanwhile, in the caller's thread.

    The first failure is raised once the calls under way have ended; no others begin. An interrupt
    does not wait for them, and nor does the end of the process: a server may be silent for minutes.
    """
    futures: list[Future[T]] = []
    waiting: deque[tuple[Future[T], A]] = deque()
    for argument in arguments:
        futures.append(Future())
        waiting.append((futures[-1], argument))

    def work() -> None:
        while True:
            try:
                future, argument = waiting.popleft()
            except IndexError:
                return
            try:
                future.set_result(function(argument))
            except BaseException as error:  # noqa: BLE001  raised below, in the caller's thread
                waiting.clear()
                future.set_exception(error)

    # Threads of an executor would hold up the end of the process.
    threads = [Thread(target=work, daemon=True) for _ in futures[:num_threads]]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # a join without a limit might not let Ctrl-C through
                thread.join(SECONDS_BETWEEN_LOOKS)
                on_look()
    finally:
        waiting.clear()
    return [future.result() for future in futures]
