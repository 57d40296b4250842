"""Stage ``merge-labels``: label artifacts of many sources become one set, a shard per dataset.

Every shard of labels is read once, and its rows go through a bucket on disk for each dataset. Which
of all questions' rows stay is found on disk too: memory holds some thousands of rows at a time.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import polars as pl

from data_contracts.artifact import ArtifactRef, Manifest
from data_contracts.enums import LabelStatus
from data_contracts.registry import SchemaId, empty_frame
from sdrpn_core.temporary_database import TemporaryDatabase
from tasks import recipes
from tasks.artifacts.frame_buckets import FrameBuckets, without_enums
from tasks.artifacts.stage import FrameStreamShard, StageRun, run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.shard_statistics import datasets_of, status_statistic
from tasks.storage.scratch_folders import scratch_folder

_COUNTS = ("num_foreground", "num_background", "num_ignore")
_INDEXED = ("number", "question_id", "dataset", "status", *_COUNTS)
_NUMBERED = {"number": pl.Int64()}
"""A row's place among those of all sources."""
_ROWS_AT_ONCE = 1 << 11
_TABLES = """
CREATE TABLE label (
    number INTEGER PRIMARY KEY, question_id TEXT, dataset TEXT, status TEXT,
    num_foreground INTEGER, num_background INTEGER, num_ignore INTEGER
);
"""
_ADD = "INSERT INTO label VALUES (?, ?, ?, ?, ?, ?, ?)"
# Labelled rows first, so that a source that failed does not hide one that did not.
_KEEP = f"""
CREATE TABLE kept AS SELECT * FROM (
    SELECT *, row_number() OVER (
        PARTITION BY dataset, question_id ORDER BY status <> '{LabelStatus.OK.value}', number
    ) AS rank FROM label
) WHERE rank = 1;
CREATE INDEX kept_number ON kept (dataset, number);
"""
_KEPT = "SELECT number FROM kept WHERE dataset = ? AND number BETWEEN ? AND ?"


def merge_labels(run: StageRun, labels: Sequence[ArtifactRef]) -> ArtifactRef:
    """Merge labels; of a question that several sources hold, the first labelled row stays.

    Rows keep the order of the sources and of their shards.
    """
    manifests = [run.store.manifest(ref) for ref in labels]
    recipe = recipes.label_set_recipe(manifests)
    datasets = datasets_of(manifests)
    with scratch_folder() as folder:

        @cache
        def read() -> tuple[FrameBuckets, TemporaryDatabase]:
            return _read(run.store, manifests, datasets, folder / "rows")

        def make_shard(bucket: int) -> FrameStreamShard:
            rows, index = read()
            statistics = _statistics(index, datasets[bucket])
            return FrameStreamShard(_kept_rows(rows, index, datasets, bucket), statistics)

        return run_stage(run, recipe, make_shard)


def _read(
    store: ArtifactStore, labels: Sequence[Manifest], datasets: Sequence[str], folder: Path
) -> tuple[FrameBuckets, TemporaryDatabase]:
    """All rows, numbered, in the bucket of their dataset; and of each what decides whether it
    stays."""
    schema = without_enums(pl.Schema({**empty_frame(SchemaId.LABEL_SET).schema, **_NUMBERED}))
    numbers = {dataset: number for number, dataset in enumerate(datasets)}
    bucket_of = pl.col("dataset").replace_strict(numbers)
    rows = FrameBuckets(folder, schema, bucket_of, len(datasets), _ROWS_AT_ONCE)
    index = TemporaryDatabase(_TABLES)
    num_rows = 0
    for made in labels:
        for found in store.all_frames(made):
            found = found.with_columns(
                label_artifact=pl.lit(str(made.recipe.ref)),
                number=pl.int_range(num_rows, num_rows + pl.len()),
            )
            index.executemany(_ADD, found.select(_INDEXED).iter_rows())
            rows.add(found.select(schema.names()).cast(schema))
            num_rows += found.height
    index.executescript(_KEEP)
    return rows, index


def _statistics(index: TemporaryDatabase, dataset: str) -> dict[str, float]:
    """Of the rows of a dataset that stay, and how many do not."""
    by_status = "SELECT status, count(*) FROM kept WHERE dataset = ? GROUP BY status"
    counts = {
        status_statistic(status): float(number)
        for status, number in index.execute(by_status, (dataset,))
    }
    all_rows = "SELECT count(*) FROM label WHERE dataset = ?"
    (num_rows,) = index.execute(all_rows, (dataset,)).fetchone()
    totals = ", ".join(f"total({name})" for name in _COUNTS)
    cells = index.execute(f"SELECT {totals} FROM kept WHERE dataset = ?", (dataset,)).fetchone()
    counts["duplicates"] = num_rows - sum(counts.values())
    return counts | dict(zip(_COUNTS, cells, strict=True))


def _kept_rows(
    rows: FrameBuckets, index: TemporaryDatabase, datasets: Sequence[str], bucket: int
) -> Iterator[pl.DataFrame]:
    """The rows of ``label_set.v2`` of a dataset that stay, some at a time."""
    for frame in rows.frames(bucket):
        places = frame["number"]
        kept = index.execute(_KEPT, (datasets[bucket], places[0], places[-1]))
        stay = pl.DataFrame(kept.fetchall(), schema=_NUMBERED, orient="row")
        yield frame.join(stay, on="number", maintain_order="left").drop("number")
