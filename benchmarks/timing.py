"""Paired timing: candidates run in turn within one process, so drift of the machine cancels."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

P = TypeVar("P")


def paired_seconds(
    candidates: Mapping[str, Callable[[], object]],
    num_rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    chance: random.Random | None = None,
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after one warm-up round.

    They run in another order every round: what ran before leaves caches warm or cold.

    Args:
        candidates: what to run, by name.
        num_rounds: measured rounds.
        clock: ``time.process_time`` leaves out what other programs do to a CPU meanwhile.
        chance: chooses the orders; the same ones every time if None.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order, chance = list(candidates), chance or random.Random(0)
    for round_index in range(num_rounds + 1):
        chance.shuffle(order)
        for name in order:
            start = clock()
            candidates[name]()
            if round_index:
                seconds[name].append(clock() - start)
    return seconds


def paired_parts(
    candidates: dict[str, Callable[[P], object]],
    parts: Sequence[P],
    num_rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """As ``paired_seconds``, of work in parts: candidates take turns part by part.

    A machine's speed changes within a long round too, and so turns are to be short.
    """
    totals = {name: [0.0] * num_rounds for name in candidates}
    chance = random.Random(0)
    for part in parts:
        of_part = {name: partial(run, part) for name, run in candidates.items()}
        for name, seconds in paired_seconds(of_part, num_rounds, clock, chance).items():
            totals[name] = [sum(pair) for pair in zip(totals[name], seconds, strict=True)]
    return totals


def print_ratios(seconds: dict[str, list[float]], baseline: str) -> None:
    """One line per candidate: median seconds, and median (min-max) ratio to the baseline."""
    for name, values in seconds.items():
        ratio = paired_ratio(values, seconds[baseline])
        print(f"{name:<34}{statistics.median(values):8.3f} s   {ratio} of {baseline}")


def paired_ratio(over: Sequence[float], under: Sequence[float]) -> str:
    """Median (least-most) of one's numbers over another's, round by round."""
    ratios = [one / two for one, two in zip(over, under, strict=True)]
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"
