"""Work of many threads: on several images at once, ahead of its taker, or waiting on somebody else.

Pillow and numpy let go of the interpreter while they work. No executor does any of it: those of a
process take no more work once its main thread has ended, while other threads may still answer, and
they hold up its end.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from contextlib import suppress
from itertools import islice
from threading import Thread
from typing import Any, Generic, TypeVar

MAX_THREADS = 16
SECONDS_BETWEEN_LOOKS = 0.5
"""Most that a main thread waits at once: it might not notice a Ctrl-C before the wait ends."""

A = TypeVar("A")
T = TypeVar("T")


def in_threads(function: Callable[[A], T], items: Iterable[A]) -> list[T]:
    """``in_parallel`` for what keeps a core at work: in no more threads than there are cores."""
    todo = list(items)
    num_threads = min(len(todo), num_cores(), MAX_THREADS)
    if num_threads < 2:
        return [function(item) for item in todo]
    return in_parallel(function, todo, num_threads)


def in_parallel(
    function: Callable[[A], T],
    arguments: Iterable[A],
    num_threads: int = MAX_THREADS,
    on_look: Callable[[], None] = lambda: None,
) -> list[T]:
    """Apply a function that mostly waits, on a disk or a server; results in the arguments' order.

    ``on_look`` is called now and then meanwhile, in the caller's thread.

    The first failure, in that order, is raised once the calls under way have ended; no others
    begin. An interrupt does not wait for them, and nor does the end of the process: a server may be
    silent for minutes.
    """
    calls = BegunCalls(function, arguments, num_threads)
    try:
        calls.wait_for_all(on_look)
    finally:
        calls.leave()
    return [calls.next_result() for _ in range(calls.num_left)]


class BegunCalls(Generic[T]):
    """Calls that threads are at work on, whose results are taken one by one, in order.

    Nothing waits for those under way: neither whoever leaves them nor the end of the process.
    """

    def __init__(
        self, function: Callable[[A], T], arguments: Iterable[A], num_threads: int = MAX_THREADS
    ) -> None:
        """Begin."""
        self._futures: deque[Future[T]] = deque()
        self._waiting: deque[tuple[Future[T], Any]] = deque()
        for argument in arguments:
            self._futures.append(Future())
            self._waiting.append((self._futures[-1], argument))
        task = (self._waiting, function)
        num_threads = min(num_threads, len(self._futures))
        self._threads = [Thread(target=_work, args=task, daemon=True) for _ in range(num_threads)]
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.leave()
            raise

    @property
    def num_left(self) -> int:
        """Results that are not taken yet."""
        return len(self._futures)

    def next_result(self) -> T:
        """Wait for it; a call's error is raised in its turn. After one, none may be asked for."""
        while not self._futures[0].done():
            wait([self._futures[0]], SECONDS_BETWEEN_LOOKS)
        return self._futures.popleft().result()

    def wait_for_all(self, on_look: Callable[[], None]) -> None:
        """Until all calls have ended, or those under way when one failed."""
        for thread in self._threads:
            while thread.is_alive():  # a join without a limit might not let Ctrl-C through
                thread.join(SECONDS_BETWEEN_LOOKS)
                on_look()

    def leave(self) -> None:
        """Begin no others."""
        self._waiting.clear()


def _work(waiting: deque[tuple[Future[T], A]], function: Callable[[A], T]) -> None:
    with suppress(IndexError):  # of none that is left
        while _keep_result(*waiting.popleft(), function):
            pass
    waiting.clear()


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
    Thread(target=_keep_result, args=(future, item, make), daemon=True).start()
    return future


def _keep_result(future: Future[T], argument: A, function: Callable[[A], T]) -> bool:
    """Whether there is one, and no error.

    An error knows the frames that it came through, this one and its caller's. None of them may know
    the future, which knows the error: such a cycle would hold what was worked on.
    """
    try:
        future.set_result(function(argument))
    except BaseException as error:  # noqa: BLE001  raised where the result is asked for
        future.set_exception(error)
        del future
        return False
    return True


def num_cores() -> int:
    """Those that this process is bound to; a container's quota of CPU time is not looked up."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
