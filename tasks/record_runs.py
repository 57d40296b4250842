"""Rows of any number, ordered and de-duplicated on disk: memory holds one run and an index.

Rows arrive in the source's order and are written in runs sorted by id. The index (ids as bytes;
about 100 bytes a row, and as much again while it is sorted) settles which rows repeat others, the
order of all, and which are kept; shards are then read back as a slice of each run. A run is long,
so that these slices are few and not short.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import polars as pl
import pyarrow as pa

from data_contracts.enums import RecordStatus
from data_contracts.registry import empty_frame
from sdrpn_core.records import Row, repeated_id

_SCHEMA_ID = "qa_record.v1"
_OK = RecordStatus.OK.value
_RUN_ROWS = 1 << 15
_BATCH_ROWS = 256
"""Few, because reading back a slice reads whole batches."""


class RecordRuns:
    """Rows of ``qa_record.v1`` on their way into shards."""

    def __init__(self, folder: Path) -> None:
        """Prepare.

        Args:
            folder: empty; the caller removes it.
        """
        self._folder = folder
        self._schema = empty_frame(_SCHEMA_ID).schema
        self._waiting: list[pl.DataFrame] = []
        """Rows of the run that is not full yet."""
        self._index: list[pl.DataFrame] = []
        self._order = pl.DataFrame()
        self.counts: Counter[str] = Counter()
        """Rows by status, once settled; before the cut to the subset."""
        self.examples: dict[str, str] = {}
        """The first reason seen of each status."""

    def add(self, rows: Sequence[Row]) -> None:
        """Take a batch; a few thousand rows are a good size."""
        if not rows:
            return
        self._waiting.append(_frame_of(rows, self._schema))
        for row in rows:
            if row["status"] not in self.examples:
                self.examples[row["status"]] = row["reason"]
        if sum(frame.height for frame in self._waiting) >= _RUN_ROWS:
            self._end_run()

    def _end_run(self) -> None:
        frame = pl.concat(self._waiting).sort("question_id", maintain_order=True)
        self._waiting = []
        number = len(self._index)
        _write(frame.cast({pl.Enum: pl.String}), self._path(number))
        content = pl.struct("image_sha256", "question").hash()
        self._index.append(
            frame.select(
                pl.col("question_id").str.decode("hex").alias("id"),
                "status",
                pl.when(pl.col("status") == _OK).then(content).alias("content"),
            )
            .with_row_index("position")
            .with_columns(pl.lit(number, pl.UInt32).alias("run"))
        )

    def settle(self, max_records: int | None, *, keep_repeats: bool = False) -> int:
        """Flag repetitions, order the rows by id, cut to the subset.

        Args:
            keep_repeats: leave questions that records of other ids ask of the same picture.
            max_records: usable rows to keep, those of the lowest ids (a digest, so a fair draw);
                rows that cannot be used are always kept. None keeps all.

        Returns:
            number of rows.
        """
        if self._waiting:
            self._end_run()
        index = self._empty_index() if not self._index else pl.concat(self._index)
        self._index = []
        index = _renamed(index.with_columns(pl.lit(None, pl.Binary).alias("same_as")))
        index = (index if keep_repeats else _flag_duplicates(index)).sort("id")
        self.counts = Counter(dict(index["status"].value_counts().iter_rows()))
        if max_records is not None:
            is_ok = pl.col("status") == _OK
            index = index.filter(~is_ok | (is_ok.cum_sum() <= max_records))
        self._order = index.drop("content")
        return self._order.height

    def frame(self, wanted: range) -> pl.DataFrame:
        """Rows of a range of the final order."""
        chosen = self._order.slice(wanted.start, len(wanted)).with_columns(
            (pl.col("position") // _BATCH_ROWS).alias("batch")
        )
        if chosen.is_empty():
            return empty_frame(_SCHEMA_ID)
        rows = self._read(chosen).with_columns(
            chosen["id"].bin.encode("hex").alias("question_id"),
            chosen["status"].cast(pl.String),
            chosen["same_as"].bin.encode("hex"),
        )
        reason = pl.concat_str(pl.lit("same image and question as "), pl.col("same_as"))
        rows = rows.with_columns(pl.coalesce(reason, pl.col("reason")).alias("reason"))
        return rows.select(self._schema.names()).cast(self._schema)

    def _read(self, chosen: pl.DataFrame) -> pl.DataFrame:
        """Rows as they were added, from no more batches than they lie in."""
        needed = chosen.select("run", "batch").unique().sort("run", "batch")
        batches = [
            batch
            for (run,), part in needed.partition_by(
                "run", as_dict=True, maintain_order=True
            ).items()
            for batch in _read_batches(self._path(int(run)), part["batch"].to_list())
        ]
        starts = list(accumulate((batch.num_rows for batch in batches), initial=0))[:-1]
        needed = needed.with_columns(pl.Series("start", starts, pl.UInt32))
        placed = chosen.join(needed, on=["run", "batch"], maintain_order="left")
        places = placed["start"] + placed["position"] % _BATCH_ROWS
        rows = pl.from_arrow(pa.Table.from_batches(batches))
        assert isinstance(rows, pl.DataFrame)
        return rows[places]

    def _path(self, number: int) -> Path:
        return self._folder / f"run-{number:06d}.arrow"

    def _empty_index(self) -> pl.DataFrame:
        return pl.DataFrame(
            schema={
                "position": pl.UInt32,
                "id": pl.Binary,
                "status": self._schema["status"],
                "content": pl.UInt64,
                "run": pl.UInt32,
            }
        )


def _frame_of(rows: Sequence[Row], schema: pl.Schema) -> pl.DataFrame:
    """Rows as a frame, column by column: given rows, polars makes a series of every list."""
    values = {name: [row[name] for row in rows] for name in schema}
    answers = pl.from_arrow(pa.array(values.pop("answers"), pa.large_list(pa.large_string())))
    assert isinstance(answers, pl.Series)
    columns = {name: pl.Series(name, column, schema[name]) for name, column in values.items()}
    return pl.DataFrame({**columns, "answers": answers}).select(schema.names()).cast(schema)


def _write(frame: pl.DataFrame, path: Path) -> None:
    """In batches of exactly ``_BATCH_ROWS``, so that a row's batch follows from its position."""
    table = frame.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=_BATCH_ROWS)


def _read_batches(path: Path, numbers: Sequence[int]) -> list[pa.RecordBatch]:
    with pa.OSFile(str(path)) as source:  # not mapped: mapped pages would count as our memory
        file = pa.ipc.open_file(source)
        return [file.get_batch(number) for number in numbers]


def is_repeated(values: pl.Series) -> pl.Series:
    """Whether a value occurs more than once; nulls do not count.

    By sorting: a hash table of a million texts takes ten times the memory.
    """
    order = values.arg_sort()
    ordered = values.gather(order)
    same = ordered.eq(ordered.shift(1)).fill_null(value=False)
    flags = same | same.shift(-1, fill_value=False)
    return pl.DataFrame({"place": order, "flag": flags}).sort("place")["flag"]


def _renamed(index: pl.DataFrame) -> pl.DataFrame:
    """Give rows whose id occurred before ids of their own."""
    is_shared = is_repeated(index["id"])
    if not is_shared.any():
        return index
    shared = index.filter(is_shared).with_columns(
        pl.col("id").cum_count().over("id").alias("occurrence")
    )
    repeats = shared.filter(pl.col("occurrence") > 1)
    named = [
        bytes.fromhex(repeated_id(first.hex(), count))
        for first, count in repeats.select("id", "occurrence").iter_rows()
    ]
    is_ok = pl.col("status") == _OK
    changed = _duplicates(repeats, is_ok, pl.col("id")).with_columns(pl.Series("id", named))
    return pl.concat(
        frame.select(index.columns)
        for frame in (index.filter(~is_shared), shared.filter(pl.col("occurrence") == 1), changed)
    )


def _flag_duplicates(index: pl.DataFrame) -> pl.DataFrame:
    """Keep one row, that of the lowest id, of those that ask the same of the same picture."""
    is_asked = index.select((pl.col("status") == _OK) & pl.col("content").is_not_null())
    asked = index.filter(is_asked.to_series())
    is_shared = is_repeated(asked["content"])
    shared = asked.filter(is_shared)
    keeper = pl.col("id").min().over("content")
    flagged = _duplicates(shared, keeper != pl.col("id"), keeper)
    return pl.concat([index.filter(~is_asked.to_series()), asked.filter(~is_shared), flagged])


def _duplicates(index: pl.DataFrame, which: pl.Expr, first: pl.Expr) -> pl.DataFrame:
    """Mark rows as duplicates of others."""
    return index.with_columns(
        pl.when(which).then(first).otherwise(pl.col("same_as")).alias("same_as"),
        pl.when(which)
        .then(pl.lit(RecordStatus.DUPLICATE.value, index.schema["status"]))
        .otherwise(pl.col("status"))
        .alias("status"),
    )
