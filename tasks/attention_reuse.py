"""Attention that an earlier run already extracted for the same questions.

A question's id digests its image, text and source, and the recipe's config holds all else that its
attention depends on. So a row of any artifact with the same config and stage version is the row
that would be made, and a source that grew costs only what is new in it. A damaged artifact or shard
is warned about and its rows are made again; so are those of one that is deleted meanwhile.

Each process looks once where which row is, and keeps that on disk.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import polars as pl

from data_contracts.artifact import ArtifactRef, Manifest, Recipe
from data_contracts.enums import ExtractionStatus
from sdrpn_core.temporary_database import TemporaryDatabase
from sdrpn_core.threads import MAX_THREADS, in_parallel
from tasks.artifacts.admin import committed_artifacts
from tasks.artifacts.errors import CorruptArtifact
from tasks.artifacts.store import ArtifactStore

Row = dict[str, Any]

log = logging.getLogger(__name__)

_KEYS = ("question_id", "kind", "status")
_TABLES = """
CREATE TABLE place (
    question_id TEXT, kind TEXT, artifact INTEGER, shard INTEGER,
    PRIMARY KEY (question_id, kind)
) WITHOUT ROWID;
"""
_ADD = "INSERT OR REPLACE INTO place VALUES (?, ?, ?, ?)"
_FIND = "SELECT artifact, shard FROM place WHERE question_id = ? AND kind = ?"


def earlier_rows(
    store: ArtifactStore, recipe: Recipe, questions: Collection[Row]
) -> dict[str, Row]:
    """Rows of ``attention_map.v1`` by question id, for those of the questions that have one.

    Args:
        store: where to look.
        recipe: of the artifact that is being made.
        questions: rows of ``qa_record.v1``; kind, answers and place may have changed since.
    """
    earlier = _earlier(_Search(store.root, recipe.ref, store, recipe))
    by_shard: dict[tuple[int, int], dict[str, Row]] = defaultdict(dict)
    for question in questions:
        key = (question["question_id"], question["kind"])
        if place := earlier.places.execute(_FIND, key).fetchone():
            by_shard[place][question["question_id"]] = question
    found: dict[str, Row] = {}
    for (number, shard), wanted in by_shard.items():
        frame = earlier.frame(number, shard)
        if frame is None:
            continue
        for row in frame.filter(pl.col("question_id").is_in(list(wanted))).iter_rows(named=True):
            question = wanted[row["question_id"]]
            carried = ("dataset", "image_uri", "image_sha256", "question", "answers")
            found[row["question_id"]] = row | {name: question[name] for name in carried}
    return found


@dataclass(frozen=True)
class _Search:
    """What is looked for; equal searches are made once per process."""

    root: str
    ref: ArtifactRef
    store: ArtifactStore = field(compare=False)
    recipe: Recipe = field(compare=False)


@dataclass
class _Earlier:
    """Artifacts with such rows, which others may delete at any time."""

    store: ArtifactStore
    manifests: list[Manifest]
    places: TemporaryDatabase = field(default_factory=lambda: TemporaryDatabase(_TABLES))
    """Which of them, and which shard, holds a question of a kind."""
    _deleted: set[int] = field(default_factory=set)

    def frame(
        self, number: int, shard: int, columns: Sequence[str] | None = None
    ) -> pl.DataFrame | None:
        """Rows of a shard; None if it cannot be read, or the artifact is gone with all of them."""
        if number in self._deleted:
            return None
        return self._told(number, self._read(number, columns, shard))

    def all_frames(
        self, number: int, columns: Sequence[str]
    ) -> Iterator[tuple[int, pl.DataFrame | None]]:
        """Every shard's index and what ``frame`` returns of it; some are read side by side."""
        indexes = range(len(self.manifests[number].shards))
        for start in range(0, len(indexes), MAX_THREADS):
            if number in self._deleted:
                return
            part = indexes[start : start + MAX_THREADS]
            found = in_parallel(partial(self._read, number, columns), part)
            for index, rows in zip(part, found, strict=True):
                yield index, self._told(number, rows)

    def _read(
        self, number: int, columns: Sequence[str] | None, shard: int
    ) -> pl.DataFrame | CorruptArtifact:
        try:
            return self.store.read_shard_frame(self.manifests[number], shard, columns)
        except CorruptArtifact as error:
            return error

    def _told(self, number: int, found: pl.DataFrame | CorruptArtifact) -> pl.DataFrame | None:
        """Rows that were found; of damage a warning, and of an artifact that is gone only one."""
        if isinstance(found, pl.DataFrame):
            return found
        if number not in self._deleted:
            made, what = self.manifests[number], found.what
            if not self.store.is_committed(made.recipe.ref):
                self._deleted.add(number)
                what = f"{made.recipe.ref} was deleted meanwhile"
            log.warning("%s: its rows are made again", what)
        return None


@lru_cache(maxsize=2)
def _earlier(search: _Search) -> _Earlier:
    manifests = [
        made
        for made in committed_artifacts(search.store, search.recipe.stage)
        if made.recipe.ref != search.ref and _makes_equal_rows(made.recipe, search.recipe)
    ]
    earlier = _Earlier(search.store, manifests)
    for number in range(len(manifests)):
        for shard, frame in earlier.all_frames(number, _KEYS):
            if frame is None:
                continue
            # An image that could not be read may be readable by now.
            read = frame.filter(pl.col("status") != ExtractionStatus.UNREADABLE_IMAGE.value)
            rows = read.select("question_id", "kind", pl.lit(number), shard=pl.lit(shard))
            earlier.places.executemany(_ADD, rows.iter_rows())
    return earlier


def _makes_equal_rows(one: Recipe, other: Recipe) -> bool:
    return (one.stage_version, one.schema_id, one.config) == (
        other.stage_version,
        other.schema_id,
        other.config,
    )
