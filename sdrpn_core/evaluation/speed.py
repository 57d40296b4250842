"""Measured times of an evaluation, and how fast each method is relative to base.

Times differ from run to run, so they travel apart from the prediction rows, whose bytes must not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np

from data_contracts.enums import Method
from data_contracts.results import MethodSpeed, Speed
from sdrpn_core.statistics import Scores, median

_SECONDS = "seconds."
_DOCUMENTS = "documents."


@dataclass(frozen=True)
class BatchTime:
    """One method on one batch of documents."""

    num_documents: int
    seconds: float
    """Wall-clock time of the whole batch."""

    @property
    def seconds_per_document(self) -> float:
        """Time of each of them."""
        return self.seconds / self.num_documents


class Timings:
    """What was measured, batch by batch; a method may have left batches out."""

    def __init__(self) -> None:
        self._batches: list[Mapping[Method, BatchTime]] = []

    @property
    def batches(self) -> tuple[Mapping[Method, BatchTime], ...]:
        """All batches, in the order they were answered."""
        return tuple(self._batches)

    def add(self, batch: Mapping[Method, BatchTime]) -> None:
        """Keep the times of one batch, all methods of which ran one right after the other."""
        self._batches.append(dict(batch))

    @property
    def _methods(self) -> list[Method]:
        return [m for m in Method if any(m in batch for batch in self._batches)]

    def to_series(self) -> dict[str, tuple[float, ...]]:
        """The measurements of a shard: one value per batch and name; 0 documents where a method
        left the batch out."""
        none = BatchTime(0, 0.0)
        series: dict[str, tuple[float, ...]] = {}
        for method in self._methods:
            times = [batch.get(method, none) for batch in self._batches]
            series[f"{_DOCUMENTS}{method.value}"] = tuple(time.num_documents for time in times)
            series[f"{_SECONDS}{method.value}"] = tuple(time.seconds for time in times)
        return series

    @classmethod
    def from_series(cls, shards: Sequence[Mapping[str, Sequence[float]]]) -> Self:
        """Read the measurements of several shards back."""
        timings = cls()
        timings._batches += chain.from_iterable(_batches_of(series) for series in shards)
        return timings

    def summarize(self) -> Speed:
        """Median time of every method, and its speed relative to base; medians over documents."""
        return Speed(methods={method: self._speed(method) for method in self._methods})

    def _speed(self, method: Method) -> MethodSpeed:
        own = [batch for batch in self._batches if method in batch]
        seconds = [(batch[method], batch[method].seconds_per_document) for batch in own]
        # Both were measured on the same batch, one right after the other.
        ratios = [
            (batch[method], batch[Method.BASE].seconds_per_document / taken)
            for batch, (_, taken) in zip(own, seconds, strict=True)
            if Method.BASE in batch and taken > 0
        ]
        return MethodSpeed(
            seconds_per_document=float(np.median(_per_document(seconds))),
            throughput=median(_per_document(ratios)),
        )


def _batches_of(series: Mapping[str, Sequence[float]]) -> list[dict[Method, BatchTime]]:
    names = [name for name in series if name.startswith(_SECONDS)]
    methods = [Method(name.removeprefix(_SECONDS)) for name in names]
    num_batches = max((len(series[name]) for name in names), default=0)
    return [
        {
            method: BatchTime(int(count), series[f"{_SECONDS}{method.value}"][index])
            for method in methods
            if (count := series[f"{_DOCUMENTS}{method.value}"][index])
        }
        for index in range(num_batches)
    ]


def _per_document(values: Sequence[tuple[BatchTime, float]]) -> Scores:
    """Each batch's value once per document."""
    counts = [time.num_documents for time, _ in values]
    return np.repeat(np.array([value for _, value in values], dtype=np.float64), counts)
