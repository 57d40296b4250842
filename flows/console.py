"""What a person sees in the terminal: progress, tables, one-line errors.

Progress goes to standard error and tables to standard output, so that output can be piped.
"""

import time
from dataclasses import dataclass
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from data_contracts.enums import Stage
from data_contracts.wording import counted
from flows.cli_base import printable, say
from flows.interrupts import raise_lost_interrupt

_MIB = 1 << 20
_GIB = 1 << 30
_WIDE = 1000
"""Characters; no table of ours is wider."""
_LEGIBLE = 12
"""Characters that a column of texts has at least."""
_BORDER = 3
"""Characters between two columns."""


_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_OF_SPEED = 3600.0
"""That a terminal's time left looks back; a unit of work may take minutes."""
_UNITS = {Stage.CALIBRATE: "questions", Stage.TRAIN_RPN: "steps"}
"""Of stages that do not count shards."""


class ProgressDisplay:
    """Bars in a terminal; elsewhere (a log file) a line now and then, and when a stage ends."""

    def __init__(
        self, console: Console, seconds_between_lines: float = _SECONDS_BETWEEN_LINES
    ) -> None:
        self._console = console
        self._lines = _Lines(console, seconds_between_lines)
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]\N{CHECK MARK}[/]" if console.is_terminal else ""),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            speed_estimate_period=_SECONDS_OF_SPEED,
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        if not self._console.is_terminal:
            self._lines.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
        self._lines.stop()

    def __call__(
        self, stage: Stage, label: str, num_done: int, num_units: int | None, part: str
    ) -> None:
        """Show how far a stage has come, or a part of its work with units of its own."""
        is_counting = bool(part) or num_units is not None
        self.show(
            f"{stage.value} {label}".strip(),
            num_done,
            num_units,
            unit=(part or _UNITS.get(stage, "shards")) if is_counting else "",
            is_part=bool(part),
            is_even=stage is not Stage.CALIBRATE,
            uncounted_end="reused",  # a stage that has something to make tells of none of it first
        )

    def show(
        self,
        name: str,
        num_done: int,
        num_units: int | None,
        *,
        unit: str,
        is_part: bool = False,
        is_even: bool = True,
        uncounted_end: str = "done",
    ) -> None:
        """Show how far any work has come.

        Args:
            name: of the work.
            num_done: units.
            num_units: in all; None if that is not known.
            unit: in the plural; empty as long as nothing is counted.
            is_part: with its last unit, the work is not done.
            is_even: its units take about as long as each other.
            uncounted_end: what a log is told at the end if nothing was counted before it.

        Raises:
            KeyboardInterrupt: if a Ctrl-C was lost on the way here.
        """
        raise_lost_interrupt()
        if not self._console.is_terminal:
            self._lines.tell(name, num_done, num_units, unit, is_part, is_even, uncounted_end)
            return
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=num_units)
        self._progress.update(self._bars[name], completed=num_done, total=num_units)


_LEAST_SECONDS = 1.0
"""Shortest time that a speed is told from: a stage may tell of where it begins only with its first
unit."""


@dataclass
class _Work:
    """What a log knows of running work; times in monotonic seconds."""

    began: float
    is_even: bool = True
    unit: str = ""
    """Empty as long as nothing is counted."""
    num_units: int | None = None
    first: tuple[float, int] = (0.0, 0)
    """When units were first told of, and how many were done then: perhaps by an earlier run."""
    last: tuple[float, int] = (0.0, 0)
    is_counted: bool = False
    """Whether anything ever was."""

    def count(self, num_done: int, num_units: int | None, unit: str) -> None:
        """Take in how many units are done."""
        now = (time.monotonic(), num_done)
        if unit != self.unit:
            self.unit, self.first = unit, now
        self.num_units, self.last, self.is_counted = num_units, now, True

    def line(self) -> str:
        """What it is at."""
        now = time.monotonic()
        spent = _duration(now - self.began)
        if not self.unit:
            return f"running for {spent}"
        told = f"{_progress(self.last[1], self.num_units, self.unit)} after {spent}"
        left = self._seconds_left(now)
        return told if left is None else f"{told}, about {_duration(left)} left"

    def _seconds_left(self, now: float) -> float | None:
        """At the speed so far; None where nothing is known of it."""
        (first_time, num_first), (last_time, num_last) = self.first, self.last
        if self.num_units is None or num_last <= num_first or not self.is_even:
            return None
        if last_time - first_time < _LEAST_SECONDS:
            return None
        each = (last_time - first_time) / (num_last - num_first)
        # Of the units that are left, only the first may be partly done.
        return max((self.num_units - num_last) * each - min(now - last_time, each), 0.0)


class _Lines:
    """What stages are at, for a log; told by a thread, as one unit of work may take minutes."""

    def __init__(self, console: Console, seconds_between: float) -> None:
        self._console = console
        self._seconds_between = seconds_between
        self._running: dict[str, _Work] = {}
        self._lock = Lock()
        self._stopped = Event()
        self._thread = Thread(target=self._tell_now_and_then, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def tell(
        self,
        name: str,
        num_done: int,
        num_units: int | None,
        unit: str,
        is_part: bool,
        is_even: bool,
        uncounted_end: str,
    ) -> None:
        with self._lock:
            work = self._running.setdefault(name, _Work(time.monotonic(), is_even))
            if unit and (num_units is None or num_done < num_units):
                if num_done and not work.is_counted and not is_part:
                    self._print(f"{name}: goes on from {_progress(num_done, num_units, unit)}")
                work.count(num_done, num_units, unit)
            elif not unit or is_part:
                work.unit = ""
            else:
                del self._running[name]
                self._print(f"{name}: {'done' if work.is_counted else uncounted_end}")

    def _tell_now_and_then(self) -> None:
        while not self._stopped.wait(self._seconds_between):
            with self._lock:
                for name, work in self._running.items():
                    self._print(f"{name}: {work.line()}")

    def _print(self, line: str) -> None:
        say(line, self._console)


def _progress(num_done: int, num_units: int | None, unit: str) -> str:
    return f"{num_done} {unit}" if num_units is None else f"{num_done} of {num_units} {unit}"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def size_text(num_bytes: int) -> str:
    """A size for people."""
    if 0 < num_bytes < 1 << 10:
        return counted(num_bytes, "byte")
    if 0 < num_bytes < _MIB // 10:
        return f"{num_bytes / (1 << 10):.1f} KiB"
    if num_bytes < _GIB:
        return f"{num_bytes / _MIB:.1f} MiB"
    return f"{num_bytes / _GIB:.1f} GiB"


def print_table(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows under their keys; figures are right-aligned and never cut, texts may wrap.

    Where that would leave texts a few letters a line, rows come one below the other.
    """
    if not rows:
        return
    table = Table(title=title, title_justify="left", title_style="bold")
    least = 1
    for name in rows[0]:
        is_figure = all(_is_figure(str(row[name])) for row in rows)
        width = max(len(str(row[name])) for row in rows)
        heading = max(map(len, name.split()))
        least += max(heading, width if is_figure else min(width, _LEGIBLE)) + _BORDER
        table.add_column(
            name,
            justify="right" if is_figure else "left",
            no_wrap=is_figure,
            min_width=width if is_figure else None,
            overflow="fold",
        )
    if console.is_terminal and console.width < least:
        _print_rows(console, title, rows)
        return
    for row in rows:
        table.add_row(*(Text(printable(str(value))) for value in row.values()))
    if not console.is_terminal:  # a file or a pipe is as wide as the table
        console = Console(file=console.file, width=_WIDE)
    console.print(table)


def _print_rows(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    """Each key and value on a line of its own; the terminal wraps what is longer."""
    say(title, console, style="bold")
    for row in rows:
        for name, value in row.items():
            say(f"{name}: {value}", console)
        say("", console)


def _is_figure(text: str) -> bool:
    bare = text.removeprefix("about ").removeprefix("at least ").removeprefix("at most ")
    return not bare or bare == "unknown" or bare.lstrip("+-< ")[:1].isdigit()
