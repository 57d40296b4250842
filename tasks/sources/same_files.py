"""Files that were touched, or brought here again, are the files they were: what follows stays.

A download is known by all that tells without reading that a file may be another one, dates among
it. Once it has read the files it knows their digests: where an earlier download has the same files
at the same addresses, later stages are given that one, so that nothing of theirs is made again.
"""

import logging
from collections.abc import Iterator

import polars as pl
from pydantic import BaseModel

from data_contracts.artifact import ArtifactRef, Manifest
from tasks.artifacts.admin import committed_artifacts
from tasks.artifacts.errors import CorruptArtifact
from tasks.artifacts.keys import SAME_AS
from tasks.artifacts.store import ArtifactStore

log = logging.getLogger(__name__)


class SameAs(BaseModel):
    """The download that stands for another one."""

    ref: str


def with_same_files(store: ArtifactStore, ref: ArtifactRef) -> ArtifactRef:
    """The download that later stages are given for this one: mostly itself."""
    found = store.read_document(ref, SAME_AS, SameAs)
    if found is None:
        return ref
    earlier = ArtifactRef.parse(found.ref)
    return earlier if store.is_committed(earlier) else ref


def note_same_files(store: ArtifactStore, ref: ArtifactRef) -> None:
    """Look for an earlier download with the same files, and keep in the store which one it is.

    To be called when the download was made, and only then: what has been made of it is not given
    up for what might have been made of another.
    """
    manifest = store.manifest(ref)
    for item in committed_artifacts(store, ref.stage):
        stands_for_itself = with_same_files(store, item.ref) == item.ref
        if item.ref != ref and stands_for_itself and _is_same(store, manifest, item.ref):
            log.info("%s has the same files as %s, which stands for it", ref, item.ref)
            document = SameAs(ref=str(item.ref)).model_dump_json()
            store.storage.put(f"{ref.prefix}/{SAME_AS}", document.encode())
            return


def _is_same(store: ArtifactStore, manifest: Manifest, other: ArtifactRef) -> bool:
    """Whether two tables have the same rows; a damaged one has not."""
    theirs = store.manifest(other)
    if [shard.num_rows for shard in manifest.shards] != [shard.num_rows for shard in theirs.shards]:
        return False
    if manifest.statistics != theirs.statistics:
        return False
    pairs = zip(_tables(store, manifest.recipe.ref), _tables(store, other), strict=True)
    try:
        return all(mine.equals(other_rows) for mine, other_rows in pairs)
    except CorruptArtifact:
        return False


def _tables(store: ArtifactStore, ref: ArtifactRef) -> Iterator[pl.DataFrame]:
    """The rows, with addresses of the artifact's own files as they are below it."""
    own = pl.col("uri").str.strip_prefix(f"{ref.prefix}/")
    return (frame.with_columns(own) for frame in store.frames(ref))
