"""Stage ``merge-labels``: label artifacts of many sources become one set, a shard per dataset.

Memory holds one shard of labels at a time; which of all questions' rows stay is found on disk.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby

import polars as pl

from data_contracts.artifact import ArtifactRef, Manifest
from data_contracts.enums import LabelStatus
from sdrpn_core.temporary_database import TemporaryDatabase
from tasks import recipes
from tasks.artifacts.stage import FrameStreamShard, StageRun, run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.shard_statistics import datasets_of, status_statistic

_COUNTS = ("num_foreground", "num_background", "num_ignore")
_INDEXED = ("question_id", "dataset", "status", *_COUNTS)
_TABLES = """
CREATE TABLE label (
    place INTEGER, row INTEGER, question_id TEXT, dataset TEXT, status TEXT,
    num_foreground INTEGER, num_background INTEGER, num_ignore INTEGER
);
"""
_ADD = "INSERT INTO label VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
# Labelled rows first, so that a source that failed does not hide one that did not.
_KEEP = f"""
CREATE TABLE kept AS SELECT * FROM (
    SELECT *, row_number() OVER (
        PARTITION BY dataset, question_id ORDER BY status <> '{LabelStatus.OK.value}', place, row
    ) AS rank FROM label
) WHERE rank = 1 ORDER BY dataset, place, row;
CREATE INDEX kept_dataset ON kept (dataset);
"""


def merge_labels(run: StageRun, labels: Sequence[ArtifactRef]) -> ArtifactRef:
    """Merge labels; of a question that several sources hold, the first labelled row stays.

    Rows keep the order of the sources and of their shards.
    """
    manifests = [run.store.manifest(ref) for ref in labels]
    recipe = recipes.label_set_recipe(manifests)
    datasets = datasets_of(manifests)
    places = [(made, shard.index) for made in manifests for shard in made.shards]

    @cache
    def index() -> TemporaryDatabase:
        return _index(run.store, places)

    def make_shard(number: int) -> FrameStreamShard:
        statistics = _statistics(index(), datasets[number])
        return FrameStreamShard(_rows(run.store, places, index(), datasets[number]), statistics)

    return run_stage(run, recipe, make_shard)


def _index(store: ArtifactStore, places: Sequence[tuple[Manifest, int]]) -> TemporaryDatabase:
    """One line per labelled question: what decides whether it stays, its shard and row in it."""
    database = TemporaryDatabase(_TABLES)
    for place, (made, shard) in enumerate(places):
        labels = store.read_shard_frame(made, shard, _INDEXED)
        numbered = labels.with_row_index("row").select(pl.lit(place), "row", *_INDEXED)
        database.executemany(_ADD, numbered.iter_rows())
    database.executescript(_KEEP)
    return database


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


def _rows(
    store: ArtifactStore,
    places: Sequence[tuple[Manifest, int]],
    index: TemporaryDatabase,
    dataset: str,
) -> Iterator[pl.DataFrame]:
    """The rows of ``label_set.v2`` that an index keeps, a label shard at a time."""
    kept = index.execute("SELECT place, row FROM kept WHERE dataset = ? ORDER BY rowid", (dataset,))
    for place, chosen in groupby(kept, lambda line: line[0]):
        made, shard = places[place]
        yield store.read_shard_frame(made, shard)[[row for _, row in chosen]].with_columns(
            label_artifact=pl.lit(str(made.recipe.ref))
        )
