"""What a person sees in the terminal: progress, tables, one-line errors.

Progress goes to standard error and tables to standard output, so that output can be piped.
"""

import time
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
)
from rich.table import Table

from data_contracts.enums import Stage

_WIDE = 1000
"""Characters; no table of ours is wider."""


_SECONDS_BETWEEN_LINES = 30.0


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
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
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
        self.show(f"{stage.value} {label}".strip(), num_done, num_units, part)

    def show(self, name: str, num_done: int, num_units: int | None, part: str = "") -> None:
        """Show how far any work has come; the units are None as long as nothing is counted."""
        if not self._console.is_terminal:
            self._lines.tell(name, num_done, num_units, part)
            return
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=num_units)
        self._progress.update(self._bars[name], completed=num_done, total=num_units)


class _Lines:
    """What stages are at, for a log; told by a thread, as one unit of work may take minutes."""

    def __init__(self, console: Console, seconds_between: float) -> None:
        self._console = console
        self._seconds_between = seconds_between
        self._running: dict[str, tuple[float, str]] = {}
        """Name -> when it began (monotonic seconds), what it is at (empty if it cannot tell)."""
        self._lock = Lock()
        self._stopped = Event()
        self._thread = Thread(target=self._tell_now_and_then, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def tell(self, name: str, num_done: int, num_units: int | None, part: str) -> None:
        with self._lock:
            is_counting = num_units is not None and num_done < num_units
            if is_counting or num_units is None or part:
                began, _ = self._running.get(name, (time.monotonic(), ""))
                at = f"{num_done} of {num_units} {part}".strip() if is_counting else ""
                self._running[name] = (began, at)
                return
            self._running.pop(name, None)
            self._print(f"{name}: done")

    def _tell_now_and_then(self) -> None:
        while not self._stopped.wait(self._seconds_between):
            with self._lock:
                for name, (began, at) in self._running.items():
                    minutes = (time.monotonic() - began) / 60
                    told = f"{at} after" if at else "running for"
                    self._print(f"{name}: {told} {minutes:.1f} min")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_table(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows under their keys; figures are right-aligned and never cut, texts may wrap."""
    if not rows:
        return
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in rows[0]:
        is_figure = all(_is_figure(str(row[name])) for row in rows)
        table.add_column(
            name,
            justify="right" if is_figure else "left",
            no_wrap=is_figure,
            min_width=max(len(str(row[name])) for row in rows) if is_figure else None,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    if not console.is_terminal:  # a file or a pipe is as wide as the table
        console = Console(file=console.file, width=_WIDE)
    console.print(table)


def _is_figure(text: str) -> bool:
    bare = text.removeprefix("about ").removeprefix("at least ")
    return not bare or bare == "unknown" or bare.lstrip("+-< ")[:1].isdigit()
