"""Files that were touched, or brought here again, are the files they were: what follows stays.

A download is known by all that tells without reading that a file may be another one, dates among
it. Once it has read the files it knows their digests: where an earlier download has the same files
at the same addresses, later stages are given that one, so that nothing of theirs is made again.

Which one it is, if any, is a note beside the download. It is begun before the download is, so that
a run that is stopped in between still looks; a download without a note stands for itself.
"""

import logging
from collections.abc import Iterator
from typing import Any

import polars as pl
from pydantic import BaseModel

from data_contracts.artifact import ArtifactRef, Manifest, Recipe
from tasks.artifacts.admin import committed_artifacts
from tasks.artifacts.errors import ArtifactNotFound, CorruptArtifact
from tasks.artifacts.keys import SAME_AS
from tasks.artifacts.store import ArtifactStore

log = logging.getLogger(__name__)


class _Note(BaseModel):
    """What stands for a download."""

    is_settled: bool = False
    """Whether the others have been looked through."""
    ref: str | None = None
    """The download that does; None if it stands for itself."""
    manifest: str | None = None
    """Digest of that one's manifest: made again, it may have other files."""


def begin_note(store: ArtifactStore, ref: ArtifactRef) -> None:
    """To be called before a download is made, or made again."""
    store.write_document(ref, SAME_AS, _Note())


def with_same_files(
    store: ArtifactStore, ref: ArtifactRef, *, only_looks: bool = False
) -> ArtifactRef:
    """The committed download that later stages are given for this one: mostly itself.

    Args:
        store: where they are.
        ref: this one.
        only_looks: nothing is written; a note that is only begun tells nothing.
    """
    note = _read(store, ref)
    if note is not None and not note.is_settled and not only_looks:
        note = _settled(store, ref)
        store.write_document(ref, SAME_AS, note)
    return _stand_in(store, note) or ref


def perhaps_same_files(store: ArtifactStore, recipe: Recipe) -> ArtifactRef | None:
    """A committed download of the same records and places, told apart by what reading tells.

    Args:
        store: where they are.
        recipe: of a download that is not made yet; whether the other one will stand for it is seen
            when its images have been read.
    """
    if "images" not in recipe.config:  # generated, or known by digests
        return None
    mine = _without_dates(recipe)
    others = (made.recipe for made in committed_artifacts(store, recipe.stage))
    return next((other.ref for other in others if _without_dates(other) == mine), None)


def _without_dates(recipe: Recipe) -> dict[str, Any]:
    """All that a download is known by but the sizes and dates of images, and dates of archives."""
    archives = [archive[:3] for archive in recipe.config.get("archives", ())]
    return {**recipe.config, "num_shards": recipe.num_shards, "images": (), "archives": archives}


def _settled(store: ArtifactStore, ref: ArtifactRef) -> _Note:
    """Look for an earlier download with the same files that stands for itself."""
    manifest = store.manifest(ref)
    for other in committed_artifacts(store, ref.stage):  # oldest first
        if other.recipe.ref == ref or other.created_at > manifest.created_at:
            continue
        note = _read(store, other.recipe.ref)
        if note is not None and not note.is_settled:
            continue  # made side by side, each could find the other
        if _stand_in(store, note) is None and _is_same(store, manifest, other):
            log.info("%s has the same files as %s, which stands for it", ref, other.recipe.ref)
            digest = store.manifest_digest(other.recipe.ref)
            return _Note(is_settled=True, ref=str(other.recipe.ref), manifest=digest)
    return _Note(is_settled=True)


def _stand_in(store: ArtifactStore, note: _Note | None) -> ArtifactRef | None:
    """What a note names, if it is still there and what it was."""
    if note is None or note.ref is None:
        return None
    try:
        ref = ArtifactRef.parse(note.ref)
        store.manifest(ref)
        return ref if store.manifest_digest(ref) == note.manifest else None
    except (ValueError, ArtifactNotFound, CorruptArtifact):
        return None


def _read(store: ArtifactStore, ref: ArtifactRef) -> _Note | None:
    """A damaged note is none."""
    try:
        return store.read_document(ref, SAME_AS, _Note)
    except CorruptArtifact:
        return None


def _is_same(store: ArtifactStore, manifest: Manifest, theirs: Manifest) -> bool:
    """Whether two tables have the same rows, and the other one all files of its own."""
    other = theirs.recipe.ref
    if [shard.num_rows for shard in manifest.shards] != [shard.num_rows for shard in theirs.shards]:
        return False
    if manifest.statistics != theirs.statistics:
        return False
    there = {stored.key: stored.num_bytes for stored in store.storage.find(other.prefix)}
    pairs = zip(_tables(store, manifest.recipe.ref), _tables(store, other), strict=True)
    try:
        return all(
            mine.equals(others) and _has_files(others, other, there) for mine, others in pairs
        )
    except CorruptArtifact:
        return False


def _has_files(table: pl.DataFrame, ref: ArtifactRef, there: dict[str, int]) -> bool:
    """Whether the files that are the artifact's own are there, in their size."""
    kept = table.filter(~pl.col("uri").str.contains("://|^/|#"))
    named = zip(kept["uri"], kept["num_bytes"], strict=True)
    return all(there.get(f"{ref.prefix}/{uri}") == num_bytes for uri, num_bytes in named)


def _tables(store: ArtifactStore, ref: ArtifactRef) -> Iterator[pl.DataFrame]:
    """The rows, with addresses of the artifact's own files as they are below it."""
    own = pl.col("uri").str.strip_prefix(f"{ref.prefix}/")
    return (frame.with_columns(own) for frame in store.frames(ref))
