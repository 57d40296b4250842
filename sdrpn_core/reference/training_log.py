"""Averages of training figures, one JSON line every few steps."""

import json
import time
from collections import defaultdict
from pathlib import Path

_WINDOW = 50


class TrainingLog:
    """Appends mean figures of each window of steps to a JSONL file."""

    def __init__(self, path: Path, stage: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._stage, self._start = path, stage, time.monotonic()
        self._sums: dict[str, list[float]] = defaultdict(list)

    def add(self, step: int, **figures: float | None) -> None:
        """Record one step; figures that are None were not measured in it."""
        for name, value in figures.items():
            if value is not None:
                self._sums[name].append(value)
        if (step + 1) % _WINDOW:
            return
        means = {name: round(sum(v) / len(v), 4) for name, v in self._sums.items()}
        seconds = round(time.monotonic() - self._start)
        row = {"stage": self._stage, "step": step + 1, "seconds": seconds, **means}
        with self._path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        self._sums.clear()
