"""Work on several images at once: Pillow and numpy let go of the interpreter while they work."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_MAX_THREADS = 16

A = TypeVar("A")
T = TypeVar("T")


def in_threads(function: Callable[[A], T], items: Iterable[A]) -> list[T]:
    """Results in the items' order; the first error, in that order, is raised."""
    todo = list(items)
    num_threads = min(len(todo), os.cpu_count() or 1, _MAX_THREADS)
    if num_threads < 2:
        return [function(item) for item in todo]
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(function, todo))
