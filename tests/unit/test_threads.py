"""Calls at once: failures, interrupts, the end of the process."""

import gc
import signal
import subprocess
import sys
from threading import Event
from weakref import ReferenceType, ref

import pytest

from sdrpn_core.threads import BegunCalls, in_parallel
from tests.architecture.source_tree import CHECKOUT
from tests.patience import PATIENCE_SECONDS


def test_a_failure_in_parallel_ends_what_has_not_begun():
    """The first in order is told, though a later one comes sooner."""
    third_failed = Event()
    called = []

    def call(number: int) -> None:
        called.append(number)
        if number == 1:
            third_failed.wait()
            raise ValueError("first")
        if number == 2:
            third_failed.set()
            raise ValueError("second")
        third_failed.wait()

    with pytest.raises(ValueError, match="first"):
        in_parallel(call, range(1000))
    assert len(called) < 1000


def test_a_result_is_taken_while_later_calls_are_under_way():
    """Whoever leaves then begins no others, and waits for none."""
    may_end = Event()
    begun = []

    def call(number: int) -> int:
        begun.append(number)
        if number > 0:
            may_end.wait(PATIENCE_SECONDS)
        return number

    calls = BegunCalls(call, range(1000), num_threads=4)
    assert calls.next_result() == 0
    calls.leave()
    may_end.set()
    calls.wait_for_all(lambda: None)
    assert sorted(begun) == list(range(len(begun)))
    assert len(begun) <= 5
    assert calls.num_left == 999


SILENT_SERVERS = """
import os
import threading
import polars  # replaces the handler of Ctrl-C
from sdrpn_core.threads import in_parallel, made_ahead

def ask(number):
    os.write(1, b"asked\\n")
    threading.Event().wait()

def ask_all(numbers):
    in_parallel(ask, numbers)

{call}
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "call", ["ask_all(range(1000))", "list(made_ahead(ask_all, [range(1000), range(1000)]))"]
)
def test_an_interrupt_waits_for_no_server(call: str):
    """It waited for the patience with each to end; these are silent for ever."""
    command = [sys.executable, "-c", SILENT_SERVERS.replace("{call}", call)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "asked\n"
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=PATIENCE_SECONDS / 4)
        finally:
            process.kill()  # or leaving would wait for it
    assert process.returncode == -signal.SIGINT
    assert told.splitlines()[-1] == "KeyboardInterrupt"


AFTER_THE_MAIN_THREAD = """
import threading
import sdrpn_core.threads
from sdrpn_core.threads import in_threads

sdrpn_core.threads.num_cores = lambda: 4

def serve():
    threading.main_thread().join()
    print(in_threads(lambda number: number + 1, range(3)))

threading.Thread(target=serve).start()
"""


def test_threads_work_after_the_main_thread_has_ended():
    """A server in a thread of its own could answer nothing about two images from then on."""
    command = [sys.executable, "-c", AFTER_THE_MAIN_THREAD]
    found = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert found.stdout == "[1, 2, 3]\n", found.stderr


class _Failure(Exception):
    """Weak references to an exception of one's own are possible."""


def test_a_failure_in_parallel_is_let_go_of_without_garbage_collection():
    """With it went what the calls were about, and what they had found."""

    def call(number: int) -> None:
        raise _Failure(number)

    def failure() -> ReferenceType[_Failure]:
        try:
            in_parallel(call, range(3))
        except _Failure as error:
            return ref(error)
        raise AssertionError("nothing was raised")

    gc.collect()
    gc.disable()
    try:
        assert failure()() is None
    finally:
        gc.enable()
