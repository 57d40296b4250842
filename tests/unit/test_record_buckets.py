"""Rows that are settled bucket by bucket, against settling all of them in memory."""

from collections import Counter
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_contracts.enums import RecordStatus
from sdrpn_core.records import Row
from tasks.artifacts import frame_buckets
from tasks.sources.record_buckets import RecordBuckets, buckets_for
from tests.oracles.settled_records import settled_records

STATUSES = [status.value for status in RecordStatus if status is not RecordStatus.DUPLICATE]
IDS = [sha256(b"%d" % number).hexdigest()[:20] for number in range(12)]
EDGES = ["0" * 20, "f" * 20]


def row(question_id: str, status: str, image: int, question: str, answer: str) -> Row:
    return {
        "question_id": question_id,
        "dataset": "mix",
        "source_id": "\u8272",
        "turn": 3,
        "kind": "natural",
        "image_uri": f"images/{image}.png",
        "image_sha256": sha256(b"%d" % image).hexdigest(),
        "question": question,
        "answers": [answer] if answer else [],
        "status": status,
        "reason": "" if status == RecordStatus.OK.value else f"it is {status}",
    }


ROWS = st.lists(
    st.builds(
        row,
        st.sampled_from([*IDS, *EDGES]),
        st.sampled_from(["ok", *STATUSES]),
        st.integers(0, 2),
        st.sampled_from(["where?", "what?\n"]),
        st.sampled_from(["", "here", "\u2028"]),
    ),
    max_size=40,
)


@pytest.fixture(autouse=True)
def _few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_buckets, "_ROWS_AT_ONCE", 4)


def settle(
    rows: list[Row],
    num_buckets: int,
    max_records: int | None = None,
    keep_repeats: bool = False,
    rows_per_shard: int = 7,
) -> tuple[list[Row], Counter[str]]:
    with TemporaryDirectory() as folder:
        buckets = RecordBuckets(Path(folder) / "rows", num_buckets)
        for start in range(0, len(rows), 3):
            buckets.add(rows[start : start + 3])
        num_rows = buckets.settle(max_records, keep_repeats=keep_repeats)
        starts = [*range(0, num_rows, rows_per_shard), num_rows]
        shards = [buckets.frame(range(*ends)) for ends in pairwise(starts)]
        return [found for shard in shards for found in shard.to_dicts()], buckets.counts


@given(ROWS, st.integers(1, 5), st.one_of(st.none(), st.integers(1, 20)), st.booleans())
@settings(max_examples=150, deadline=None)
def test_rows_are_those_of_settling_in_memory(
    rows: list[Row], num_buckets: int, max_records: int | None, keep_repeats: bool
):
    found, counts = settle(rows, num_buckets, max_records, keep_repeats)
    assert found == settled_records(rows, max_records, keep_repeats=keep_repeats)
    whole = settled_records(rows, None, keep_repeats=keep_repeats)
    assert +counts == Counter(one["status"] for one in whole)


def test_one_record_many_times_is_spread_over_all_buckets(tmp_path: Path):
    """Its repetitions get ids of their own, so that no bucket grows with them."""
    rows = [row(IDS[0], "ok", 0, "where?", str(number)) for number in range(300)]
    buckets = RecordBuckets(tmp_path / "rows", 4)
    buckets.add(rows)
    assert buckets.settle(None) == 300
    sizes = [path.stat().st_size for path in (tmp_path / "rows/named").iterdir()]
    assert len(sizes) == 4
    assert max(sizes) < 2 * min(sizes)
    assert list((tmp_path / "rows/arrived").iterdir()) == [], "no row is kept twice"
    kept = buckets.frame(range(300)).filter(pl.col("status") == "ok")
    assert kept["answers"].to_list() == [["0"]], "the first of them stays"


def test_no_rows():
    assert settle([], 2) == ([], Counter())


def test_a_larger_source_has_more_buckets_not_larger_ones():
    assert buckets_for(0) == buckets_for(1) == 1
    assert [buckets_for(size << 30) // buckets_for(1 << 30) for size in (2, 8, 64)] == [2, 8, 64]
