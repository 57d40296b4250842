"""Relative speed against medians worked out by hand."""

import pytest

from data_contracts.enums import Method
from sdrpn_core.evaluation.speed import BatchTime, Timings


def measured(*batches: dict[Method, tuple[int, float]]) -> Timings:
    timings = Timings()
    for batch in batches:
        timings.add({method: BatchTime(*time) for method, time in batch.items()})
    return timings


def test_medians_are_over_documents_and_pairs_over_batches() -> None:
    timings = measured(
        {Method.BASE: (2, 2.0), Method.SDRPN: (2, 4.0)},
        {Method.BASE: (1, 1.0), Method.SDRPN: (1, 3.0)},
        {Method.BASE: (1, 3.0), Method.SDRPN: (1, 12.0)},
    )
    speeds = timings.summarize().methods
    # Per document: 2, 2, 3, 12 seconds; ratios 1/2, 1/2, 1/3, 1/4.
    assert speeds[Method.SDRPN].seconds_per_document == 2.5
    assert speeds[Method.SDRPN].throughput == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert speeds[Method.BASE].throughput == 1.0


def test_a_method_counts_the_documents_that_it_answered() -> None:
    timings = measured(
        {Method.BASE: (4, 4.0), Method.ORACLE: (1, 4.0)},
        {Method.BASE: (4, 8.0)},
        {Method.BASE: (4, 4.0), Method.ORACLE: (3, 6.0)},
    )
    oracle = timings.summarize().methods[Method.ORACLE]
    assert oracle.seconds_per_document == 2.0
    assert oracle.throughput == 0.5


def test_without_base_there_is_no_relative_speed() -> None:
    speed = measured({Method.SDRPN: (1, 1.0)}).summarize().methods[Method.SDRPN]
    assert (speed.seconds_per_document, speed.throughput) == (1.0, None)
    assert measured().summarize().methods == {}


def test_series_of_several_shards_read_back() -> None:
    shards = [
        measured({Method.BASE: (2, 1.0), Method.ORACLE: (1, 0.5)}, {Method.BASE: (1, 2.0)}),
        measured({Method.BASE: (3, 3.0)}),
        measured(),
    ]
    series = [shard.to_series() for shard in shards]
    assert series[0]["documents.oracle"] == (1, 0)
    joined = Timings.from_series(series)
    assert joined.to_series() == {
        "documents.base": (2, 1, 3),
        "seconds.base": (1.0, 2.0, 3.0),
        "documents.oracle": (1, 0, 0),
        "seconds.oracle": (0.5, 0.0, 0.0),
    }
