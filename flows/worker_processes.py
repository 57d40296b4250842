"""Work in processes that end at once on Ctrl-C, and with the process that started them."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any

from flows.imports import begin_imports, end_imports
from flows.interrupts import interrupts_held

_SECONDS_BETWEEN_LOOKS = 0.5
"""A wait without a limit may let Ctrl-C through only when it ends: some libraries (polars) replace
the signal's handler by one that resumes such waits."""


def in_processes(
    function: Callable[..., Any],
    jobs: Iterable[tuple[Any, ...]],
    num_processes: int,
    on_done: Callable[[], None],
) -> None:
    """Do jobs in new processes.

    After a failure, jobs that have not begun never do; those at work end first. An interrupt ends
    the processes there and then.

    Args:
        function: what does a job.
        jobs: its arguments, which can be pickled.
        num_processes: how many jobs at a time.
        on_done: called after each job.

    Raises:
        BrokenProcessPool: if a process was killed.
    """
    others = set(active_children())
    context = get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, initializer=_begin) as pool:
        try:
            with interrupts_held():
                futures = [pool.submit(_work, function, *job) for job in jobs]
            _wait(pool, futures, on_done)
        except KeyboardInterrupt:
            for worker in set(active_children()) - others:
                worker.terminate()  # its job may take minutes, and is done again whole
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin() -> None:
    end_with_parent()
    begin_imports()  # reading the first job imports what it needs


def _work(function: Callable[..., Any], *job: Any) -> None:
    end_imports()
    function(*job)


def end_with_parent() -> None:
    """See to it, in a worker process, that it does not outlive the one that started it.

    A pool's workers wait for work without end when that one is killed, and keep the memory of the
    device that a rerun needs.
    """
    parent = parent_process()
    if parent is not None:
        Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)  # whatever the main thread is at: its shard is made again whole


def _wait(
    pool: ProcessPoolExecutor, futures: Sequence[Future[Any]], on_done: Callable[[], None]
) -> None:
    pending = set(futures)
    try:
        while pending:
            done, pending = wait(pending, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            for future in done:
                future.result()
                on_done()
    except Exception:
        pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in futures):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        raise
