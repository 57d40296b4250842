"""Work on several images at once: Pillow and numpy let go of the interpreter while they work."""

import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_MAX_THREADS = 16

A = TypeVar("A")
T = TypeVar("T")


def in_threads(function: Callable[[A], T], items: Iterable[A]) -> list[T]:
    """Results in the items' order; the first error, in that order, is raised."""
    todo = list(items)
    num_threads = min(len(todo), _num_cores(), _MAX_THREADS)
    if num_threads < 2:
        return [function(item) for item in todo]
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(function, todo))


def made_ahead(make: Callable[[A], T], items: Iterable[A]) -> Generator[T, None, None]:
    """Results in the items' order, each made while its taker is still at work on the last.

    An error is raised when its result is asked for. Closing waits for the one being made.
    """
    todo = iter(items)
    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(make, item) for item in islice(todo, 1)]
        while pending:
            result = pending.pop().result()
            pending = [pool.submit(make, item) for item in islice(todo, 1)]
            yield result


def _num_cores() -> int:
    """Those that this process may use: containers and schedulers give fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
