"""Paired timing: candidates run in turn within one process, so drift of the machine cancels."""

import statistics
import time
from collections.abc import Callable


def paired_seconds(
    candidates: dict[str, Callable[[], object]], num_rounds: int
) -> dict[str, list[float]]:
    """Wall-clock seconds of each candidate in each round, after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_index in range(num_rounds + 1):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            if round_index:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def print_ratios(seconds: dict[str, list[float]], baseline: str) -> None:
    """One line per candidate: median seconds, and median (min-max) ratio to the baseline."""
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, seconds[baseline], strict=True)]
        print(
            f"{name:<34}{statistics.median(values):8.3f} s   "
            f"{statistics.median(ratios):6.2f}x of {baseline} "
            f"({min(ratios):.2f}-{max(ratios):.2f})"
        )
