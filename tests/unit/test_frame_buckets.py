"""Rows in buckets on disk: every row once, in the order it came in."""

from pathlib import Path

import polars as pl
import pytest

from tasks.artifacts import frame_buckets
from tasks.artifacts.frame_buckets import FrameBuckets

SCHEMA = pl.Schema({"number": pl.Int64(), "texts": pl.List(pl.String())})


@pytest.fixture
def buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FrameBuckets:
    """Three buckets by the remainder, of ten numbers, written four at a time."""
    monkeypatch.setattr(frame_buckets, "_ROWS_AT_ONCE", 4)
    made = FrameBuckets(tmp_path / "buckets", SCHEMA, pl.col("number") % 3, 3)
    for number in reversed(range(10)):
        texts = [["\u8272", ""]] if number % 2 else [None]
        made.add(pl.DataFrame({"number": [number], "texts": texts}, schema=SCHEMA))
    return made


def test_rows_keep_their_order(buckets: FrameBuckets):
    assert [buckets.frame(bucket)["number"].to_list() for bucket in range(3)] == [
        [9, 6, 3, 0],
        [7, 4, 1],
        [8, 5, 2],
    ]
    assert buckets.frame(2)["texts"].to_list() == [None, ["\u8272", ""], None]
    assert buckets.num_rows() == [4, 3, 3]


def test_a_bucket_is_read_some_rows_at_a_time(buckets: FrameBuckets):
    for number in range(12):
        buckets.add(pl.DataFrame({"number": [3 * number], "texts": [[]]}, schema=SCHEMA))
    parts = list(buckets.frames(0))
    assert len(parts) > 1
    assert max(part.height for part in parts) < 8
    assert pl.concat(parts).equals(buckets.frame(0))


def test_removed_rows_take_no_space(buckets: FrameBuckets, tmp_path: Path):
    for bucket in range(3):
        buckets.remove(bucket)
        buckets.remove(bucket)
    assert list((tmp_path / "buckets").iterdir()) == []


def test_an_empty_bucket_has_the_schema(tmp_path: Path):
    made = FrameBuckets(tmp_path / "buckets", SCHEMA, pl.col("number") % 3, 3)
    assert made.frame(1).schema == SCHEMA
    assert list(made.frames(1)) == []
    assert made.num_rows() == [0, 0, 0]
