"""Work on several images at once: Pillow and numpy let go of the interpreter while they work."""

import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from threading import Thread
from typing import TypeVar

_MAX_THREADS = 16
SECONDS_BETWEEN_LOOKS = 0.5
"""Most that a main thread waits at once: it might not notice a Ctrl-C before the wait ends."""

A = TypeVar("A")
T = TypeVar("T")


def in_threads(function: Callable[[A], T], items: Iterable[A]) -> list[T]:
    """Results in the items' order; the first error, in that order, is raised."""
    todo = list(items)
    num_threads = min(len(todo), num_cores(), _MAX_THREADS)
    if num_threads < 2:
        return [function(item) for item in todo]
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(function, todo))


def made_ahead(make: Callable[[A], T], items: Iterable[A]) -> Generator[T, None, None]:
    """Results in the items' order, each made while its taker is still at work on the last.

    An error is raised when its result is asked for. Closing does not wait for the one being made:
    garbage collection may close in any thread, also in one that the work being done needs.
    """
    todo = iter(items)
    pending = [_begun(make, item) for item in islice(todo, 1)]
    while pending:
        while wait(pending, SECONDS_BETWEEN_LOOKS).not_done:
            pass
        done, pending = pending, [_begun(make, item) for item in islice(todo, 1)]
        yield done.pop().result()


def _begun(make: Callable[[A], T], item: A) -> Future[T]:
    """Work in a thread that holds up no end of the process: it may wait for a silent server."""
    future: Future[T] = Future()
    Thread(target=_work, args=(future, make, item), daemon=True).start()
    return future


def _work(future: Future[T], make: Callable[[A], T], item: A) -> None:
    try:
        future.set_result(make(item))
    except BaseException as error:  # noqa: BLE001  raised where the result is asked for
        future.set_exception(error)
        del future  # the error's traceback knows this frame: a cycle would hold what it worked on


def num_cores() -> int:
    """Those that this process is bound to; a container's quota of CPU time is not looked up."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
