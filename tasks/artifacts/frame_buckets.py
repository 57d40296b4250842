"""Rows of any number on disk, split into buckets that are each small enough to hold.

A bucket is a file that rows are appended to, so rows keep the order they came in. Which bucket a
row belongs to follows from the row itself: for digests, which are spread evenly, from their value.
A bucket that is not small can be read some rows at a time.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa

_ROWS_AT_ONCE = 1 << 14
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class FrameBuckets:
    """Rows of one schema, by bucket."""

    def __init__(
        self,
        folder: Path,
        schema: pl.Schema,
        bucket_of: pl.Expr,
        num_buckets: int,
        rows_at_once: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            folder: does not exist yet; the caller removes it.
            schema: of the rows; without enums, see ``without_enums``.
            bucket_of: a row's bucket, from 0.
            num_buckets: chosen so that one bucket fits in memory, if it is to be held.
            rows_at_once: gathered before they are written, and read at once; fewer than the usual
                number for rows that are long.
        """
        folder.mkdir()
        self._folder = folder
        self._empty = pl.DataFrame(schema=schema)
        self._bucket_of = bucket_of.alias("bucket")
        self._num_rows = [0] * num_buckets
        self._waiting: list[pl.DataFrame] = []
        self._num_waiting = 0
        self._rows_at_once = _ROWS_AT_ONCE if rows_at_once is None else rows_at_once

    def add(self, rows: pl.DataFrame) -> None:
        """Append rows to their buckets."""
        self._waiting.append(rows)
        self._num_waiting += rows.height
        if self._num_waiting >= self._rows_at_once:
            self._write()

    def num_rows(self) -> list[int]:
        """Rows in each bucket."""
        self._write()
        return list(self._num_rows)

    def frames(self, bucket: int) -> Iterator[pl.DataFrame]:
        """Rows of a bucket in their order, some at a time, however many it has."""
        self._write()
        held: list[pa.Table] = []
        num_held = 0
        for table in self._appended(bucket):
            held.append(table)
            num_held += table.num_rows
            if num_held >= self._rows_at_once:
                yield _joined(held)
                held, num_held = [], 0
        if held:
            yield _joined(held)

    def frame(self, bucket: int) -> pl.DataFrame:
        """All rows of a bucket, in their order."""
        return pl.concat([self._empty, *self.frames(bucket)])

    def remove(self, bucket: int) -> None:
        """Give the space of a bucket's rows back; they are not read again."""
        self._write()
        self._path(bucket).unlink(missing_ok=True)

    def _write(self) -> None:
        if not self._waiting:
            return
        rows = pl.concat([self._empty, *self._waiting]).with_columns(self._bucket_of)
        self._waiting, self._num_waiting = [], 0
        for (bucket,), part in rows.partition_by("bucket", as_dict=True, include_key=False).items():
            self._append(int(bucket), part)

    def _append(self, bucket: int, rows: pl.DataFrame) -> None:
        """Add a stream of its own to the file: open only meanwhile, for buckets may be many."""
        table = rows.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
        with (
            self._path(bucket).open("ab") as file,
            pa.ipc.new_stream(file, table.schema, options=_OPTIONS) as stream,
        ):
            stream.write_table(table)
        self._num_rows[bucket] += rows.height

    def _appended(self, bucket: int) -> Iterator[pa.Table]:
        path = self._path(bucket)
        if not path.exists():
            return
        with pa.OSFile(str(path)) as file:  # not mapped: mapped pages would count as our memory
            while file.tell() < file.size():
                yield pa.ipc.open_stream(file).read_all()

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:06d}.arrows"


def without_enums(schema: pl.Schema) -> pl.Schema:
    """The schema with texts for enums, which Arrow would write as dictionaries."""
    plain = {name: pl.String() if isinstance(t, pl.Enum) else t for name, t in schema.items()}
    return pl.Schema(plain)


def _joined(tables: list[pa.Table]) -> pl.DataFrame:
    rows = pl.from_arrow(pa.concat_tables(tables))
    assert isinstance(rows, pl.DataFrame)
    return rows
