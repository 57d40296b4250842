import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import polars as pl
import pytest

from flows.interrupts import Terminated, interrupts_heard, interrupts_held, raise_lost_interrupt
from tests.architecture.source_tree import CHECKOUT


class Panic(BaseException):
    """What polars' Rust makes of an error in a function of ours that it calls."""


class InterruptedAtItsEnd:
    """An object whose last moment a Ctrl-C comes in: nobody can be told of the error there."""

    def __del__(self) -> None:
        ctrl_c()


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def dropped_ctrl_c() -> None:
    with suppress(KeyboardInterrupt):
        ctrl_c()


def sigterm() -> None:
    signal.raise_signal(signal.SIGTERM)


def dropped_sigterm() -> None:
    with suppress(KeyboardInterrupt):
        sigterm()


def do(*steps: Callable[[], object]) -> None:
    with interrupts_heard():
        for step in steps:
            step()


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> list[type[BaseException]]:
    """Errors that nobody could be told of."""
    errors: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: errors.append(dropped.exc_type))
    return errors


def test_interrupts_are_raised_at_once():
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        do(ctrl_c, lambda: reached.append("the next step"))
    assert not reached


@pytest.mark.parametrize("made_of_it", [TypeError("not a data type"), Panic("cast")])
def test_ctrl_c_of_which_a_library_made_an_error(made_of_it: BaseException):
    """A run ended with polars' TypeError and its traceback."""

    def fail() -> None:
        raise made_of_it

    with pytest.raises(KeyboardInterrupt) as caught:
        do(dropped_ctrl_c, fail)
    assert caught.value.__cause__ is made_of_it


@pytest.mark.parametrize("signal_sent", [ctrl_c, sigterm])
def test_an_interrupt_waits_until_polars_has_returned(
    signal_sent: Callable[[], None], capfd: pytest.CaptureFixture[str]
):
    """Its Rust printed pages about a panic: it asks Python for every column's type."""
    frame = pl.DataFrame({"a": [[1.0]]})
    sent_from: list[str] = []

    def send(called: FrameType, event: str, argument: object) -> None:
        if event == "call" and called.f_code is pl.List.__init__.__code__ and not sent_from:
            sent_from.append(called.f_globals["__name__"])
            signal_sent()

    def read_on() -> None:
        sys.setprofile(send)
        try:
            while True:
                frame.rows()
                assert frame.dtypes == [pl.List(pl.Float64)]
        finally:
            sys.setprofile(None)

    with pytest.raises(KeyboardInterrupt) as caught:
        do(read_on)
    assert sent_from == ["polars.datatypes.classes"]
    assert caught.value.__cause__ is None
    assert capfd.readouterr().err == ""


def test_ctrl_c_that_a_library_dropped():
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        do(dropped_ctrl_c, raise_lost_interrupt, lambda: reached.append("the next step"))
    assert not reached


def test_ctrl_c_that_nobody_could_be_told_of_is_not_printed(untold: list[type[BaseException]]):
    """Two lines of a traceback stood in the log, and the run went on."""
    with pytest.raises(KeyboardInterrupt):
        do(InterruptedAtItsEnd, raise_lost_interrupt)
    assert not untold
    InterruptedAtItsEnd()
    assert untold == [KeyboardInterrupt]


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_while_the_command_is_imported(number: signal.Signals, word: str):
    """In its first half second, Ctrl-C was a traceback through some library's imports."""
    code = f"""
import signal, sys
class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            signal.raise_signal({int(number)})
sys.meta_path.insert(0, Sender())
from flows.__main__ import main
main()
"""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", f"{word}\n")


def test_what_another_thread_makes_is_whole():
    """A shard that Prefect's thread had made was thrown away."""
    heard: list[BaseException] = []

    def work() -> None:
        try:
            raise_lost_interrupt()
        except KeyboardInterrupt as error:
            heard.append(error)

    def in_a_thread() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    do(dropped_ctrl_c, in_a_thread)
    assert not heard


def test_in_other_threads_the_handler_is_left_in_its_place():
    failed: list[BaseException] = []

    def work() -> None:
        try:
            do(lambda: None)
        except ValueError as error:  # what Python says of handlers that other threads set
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed


def test_what_was_lost_before_an_inner_block_is_not_forgotten_in_it():
    def fail() -> None:
        raise TypeError

    with pytest.raises(KeyboardInterrupt):
        do(dropped_ctrl_c, lambda: do(lambda: None), fail)


def test_errors_that_nobody_can_be_told_of_are_told_as_ever(untold: list[type[BaseException]]):
    class Broken:
        def __del__(self) -> None:
            raise ValueError

    with pytest.raises(KeyboardInterrupt):
        do(Broken, dropped_ctrl_c, Broken, raise_lost_interrupt)
    assert untold == [ValueError, ValueError]


def test_sigterm_ends_a_block_as_ctrl_c_does():
    """It ended the process without a word on what is kept."""
    with pytest.raises(Terminated):
        do(sigterm)
    with pytest.raises(Terminated):
        do(dropped_sigterm, raise_lost_interrupt)

    def fail() -> None:
        raise TypeError

    with pytest.raises(Terminated):
        do(dropped_sigterm, fail)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_sigterm_ends_what_is_stuck():
    left: list[object] = []
    do(dropped_sigterm, lambda: left.append(signal.getsignal(signal.SIGTERM)))
    assert left == [signal.SIG_DFL]


def test_sigterm_is_heard_where_ctrl_c_is_ignored():
    """In the background of a script, for one."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(Terminated):
            do(ctrl_c, sigterm)
    finally:
        signal.signal(signal.SIGINT, before)


def test_both_are_held_while_processes_are_started():
    reached: list[str] = []

    def start() -> None:
        with interrupts_held():
            sigterm()
            reached.append("the last process")

    with pytest.raises(Terminated):
        do(start)
    assert reached


def test_the_handler_of_another_is_left_while_processes_are_started():
    """Prefect's runner asks whether its own is there before it counts on it for a cancellation."""

    def theirs(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        with interrupts_held():
            assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_errors_stay_what_they_are():
    error = TypeError("a mistake of ours")

    def fail() -> None:
        raise error

    with pytest.raises(TypeError) as caught:
        do(raise_lost_interrupt, fail)
    assert caught.value is error


def test_a_block_answers_for_its_own():
    """What the inner block's Ctrl-C is turned into passes the outer one."""

    def inner() -> None:
        try:
            do(ctrl_c)
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    with pytest.raises(SystemExit):
        do(inner)


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    for _ in range(2):
        with suppress(KeyboardInterrupt):
            do(ctrl_c)
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook) == before
    raise_lost_interrupt()


def test_another_handler_is_left_in_its_place():
    """Prefect's, for one."""
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        do(ctrl_c)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]
