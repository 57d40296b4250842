"""Rows of any number, ordered and de-duplicated on disk: memory holds one bucket of them.

A question's id is a digest, so its leading digits split all rows evenly into ranges of ids, each a
bucket. Every step then needs one bucket at a time:

1. ``add`` appends rows to the bucket of their id, in the source's order.
2. Rows of an id that occurred before get ids of their own, and move to the bucket of that id.
3. What asks the same of the same picture meets in one bucket of a second kind, by what is asked;
   there all but the lowest id are noted as repetitions, each for the bucket of its id.
4. ``frame`` reads ranges of the final order, bucket by bucket.

How often one row repeats does not matter: only different ids and questions are counted at once.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa

from data_contracts.enums import RecordStatus
from data_contracts.registry import SchemaId, empty_frame
from sdrpn_core.records import Row, repeated_id
from tasks.artifacts.frame_buckets import FrameBuckets, without_enums
from tasks.artifacts.row_ranges import overlapping

_OK = RecordStatus.OK.value
_DUPLICATE = RecordStatus.DUPLICATE.value
_SOURCE_BYTES_PER_BUCKET = 1 << 23
_IS_OK = pl.col("status") == _OK
_REASON = "same image and question as "


def buckets_for(source_bytes: int) -> int:
    """How many buckets the rows of a source of this size are split into."""
    return max(1, math.ceil(source_bytes / _SOURCE_BYTES_PER_BUCKET))


class RecordBuckets:
    """Rows of ``qa_record.v1`` on their way into shards."""

    def __init__(self, folder: Path, num_buckets: int) -> None:
        """Prepare.

        Args:
            folder: does not exist yet; the caller removes it.
            num_buckets: see ``buckets_for``.
        """
        folder.mkdir()
        self._schema = empty_frame(SchemaId.QA_RECORD).schema
        self._stored = without_enums(self._schema)
        by_id = _leading_digits(num_buckets)
        by_content = pl.col("content") % num_buckets
        asked = pl.Schema({"content": pl.UInt64(), "question_id": pl.String()})
        repeated = pl.Schema({"question_id": pl.String(), "first": pl.String()})
        self._arrived = FrameBuckets(folder / "arrived", self._stored, by_id, num_buckets)
        self._named = FrameBuckets(folder / "named", self._stored, by_id, num_buckets)
        self._asked = FrameBuckets(folder / "asked", asked, by_content, num_buckets)
        self._repeated = FrameBuckets(folder / "repeated", repeated, by_id, num_buckets)
        self._num_usable = [0] * num_buckets
        self._num_kept: list[int] = []
        """Usable rows of each bucket that stay, once settled."""
        self._num_rows: list[int] = []
        """All rows of each bucket that stay, once settled."""
        self._held: tuple[int, pl.DataFrame] | None = None
        """The bucket that was read last."""
        self.counts: Counter[str] = Counter()
        """Rows by status, once settled; before the cut to the subset."""
        self.examples: dict[str, str] = {}
        """The first reason seen of each status."""

    def add(self, rows: Sequence[Row]) -> None:
        """Take a batch; a few thousand rows are a good size."""
        if not rows:
            return
        self._arrived.add(_frame_of(rows, self._stored))
        for row in rows:
            if row["status"] not in self.examples:
                self.examples[row["status"]] = row["reason"]

    def settle(self, max_records: int | None, *, keep_repeats: bool = False) -> int:
        """Flag repetitions, order the rows by id, cut to the subset.

        Args:
            keep_repeats: leave questions that records of other ids ask of the same picture.
            max_records: usable rows to keep, those of the lowest ids (a digest, so a fair draw);
                rows that cannot be used are always kept. None keeps all.

        Returns:
            number of rows.
        """
        buckets = range(len(self._num_usable))
        for bucket in buckets:
            self._name(bucket, ask=not keep_repeats)
        for bucket in buckets:
            self._note_repeated(bucket)
        num_repeated = self._repeated.num_rows()
        self.counts.update({_DUPLICATE: sum(num_repeated), _OK: -sum(num_repeated)})
        left = self.counts[_OK] if max_records is None else max_records
        for bucket, num_rows in enumerate(self._named.num_rows()):
            num_usable = self._num_usable[bucket] - num_repeated[bucket]
            num_kept = min(num_usable, left)
            left -= num_kept
            self._num_kept.append(num_kept)
            self._num_rows.append(num_rows - num_usable + num_kept)
        return sum(self._num_rows)

    def frame(self, wanted: range) -> pl.DataFrame:
        """Rows of a range of the final order; one range after another reads each bucket once."""
        parts = [
            self._settled(bucket)[inside.start : inside.stop]
            for bucket, inside in overlapping(self._num_rows, wanted)
        ]
        return pl.concat([empty_frame(SchemaId.QA_RECORD), *parts])

    def _name(self, bucket: int, *, ask: bool) -> None:
        """Give every row of a bucket its final id; from now on a usable row stays where it is."""
        seen: Counter[str] = Counter()
        for arrived in self._arrived.frames(bucket):
            rows = _renamed(arrived, seen)
            usable = rows.filter(_IS_OK)
            self._named.add(rows)
            self._num_usable[bucket] += usable.height
            self.counts.update(dict(rows["status"].value_counts().iter_rows()))
            if ask:
                content = pl.struct("image_sha256", "question").hash()
                self._asked.add(usable.select(content.alias("content"), "question_id"))
        self._arrived.remove(bucket)

    def _note_repeated(self, bucket: int) -> None:
        """Keep one row, that of the lowest id, of those that ask the same of the same picture."""
        first = pl.DataFrame(schema={"content": pl.UInt64(), "first": pl.String()})
        for asked in self._asked.frames(bucket):
            found = asked.select("content", first="question_id")
            first = pl.concat([first, found]).group_by("content").agg(pl.col("first").min())
        for asked in self._asked.frames(bucket):
            found = asked.join(first, on="content").filter(pl.col("question_id") != pl.col("first"))
            self._repeated.add(found.select("question_id", "first"))
        self._asked.remove(bucket)

    def _settled(self, bucket: int) -> pl.DataFrame:
        """The rows of a bucket that stay, in their final order."""
        if self._held is None or self._held[0] != bucket:
            self._held = None  # before the next one is read
            rows = self._named.frame(bucket).join(
                self._repeated.frame(bucket), on="question_id", how="left"
            )
            rows = _duplicates(rows, pl.col("first").is_not_null(), pl.col("first"))
            rows = rows.sort("question_id")
            rows = rows.filter(~_IS_OK | (_IS_OK.cum_sum() <= self._num_kept[bucket]))
            self._held = bucket, rows.select(self._schema.names()).cast(self._schema)
        return self._held[1]


def _leading_digits(num_buckets: int) -> pl.Expr:
    """The bucket of an id: lower ids are in lower buckets."""
    return pl.col("question_id").str.slice(0, 8).str.to_integer(base=16) * num_buckets // (1 << 32)


def _frame_of(rows: Sequence[Row], schema: pl.Schema) -> pl.DataFrame:
    """Rows as a frame, column by column: given rows, polars makes a series of every list."""
    values = {name: [row[name] for row in rows] for name in schema}
    answers = pl.from_arrow(pa.array(values.pop("answers"), pa.large_list(pa.large_string())))
    assert isinstance(answers, pl.Series)
    columns = {name: pl.Series(name, column, schema[name]) for name, column in values.items()}
    return pl.DataFrame({**columns, "answers": answers}).select(schema.names())


def _renamed(rows: pl.DataFrame, seen: Counter[str]) -> pl.DataFrame:
    """Give rows whose id occurred before ids of their own.

    Args:
        rows: in the source's order.
        seen: how often each id occurred so far; it is brought up to date.
    """
    names, firsts = [], []
    for first in rows["question_id"]:
        seen[first] += 1
        is_first = seen[first] == 1
        names.append(first if is_first else repeated_id(first, seen[first]))
        firsts.append(None if is_first else first)
    named = rows.with_columns(
        pl.Series("question_id", names), pl.Series("first", firsts, pl.String)
    )
    repeats = _IS_OK & pl.col("first").is_not_null()
    return _duplicates(named, repeats, pl.col("first")).drop("first")


def _duplicates(rows: pl.DataFrame, which: pl.Expr, first: pl.Expr) -> pl.DataFrame:
    """Mark rows as duplicates of others."""
    reason = pl.concat_str(pl.lit(_REASON), first)
    return rows.with_columns(
        pl.when(which).then(pl.lit(_DUPLICATE)).otherwise("status").alias("status"),
        pl.when(which).then(reason).otherwise("reason").alias("reason"),
    )
