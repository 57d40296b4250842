"""The artifact store: addressed by recipe, committed by manifest.

    {root}/{stage}/{artifact_id}/
        recipe.json                                   first; create-only
        inputs.json                                   which answers a results table is made of
        shards/00007-of-00512-{sha12}.parquet         named by content, so retries never collide
        files/{sha12}/{name}                          the same for artifacts made of plain files
        blobs/{sha256}{suffix}                        bytes that rows point at (downloaded images)
        receipts/00007.json                           create-only; the first writer wins
        checkpoints/step-00000050/...                 resume points of the running stage only
        manifest.json                                 last; create-only; the commit

Readers open the manifest and never list. A crash at any point leaves nothing that they can see, and
every receipt's shard complete, so a rerun makes only what has no receipt. Two writers of the same
artifact may race: whichever receipts and manifest stand, they name complete shards of one recipe.
That holds even on stores that ignore conditional puts, because every create-only document is read
back after writing and the stored one is what counts.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Self, TypeVar

import polars as pl
from pydantic import BaseModel, ValidationError

from data_contracts.artifact import ArtifactRef, Manifest, Recipe, ShardEntry
from data_contracts.registry import empty_frame
from data_contracts.runtime import RuntimeConfig
from sdrpn_core.threads import in_parallel, made_ahead
from tasks.artifacts.errors import ArtifactNotFound, CorruptArtifact
from tasks.artifacts.frame_codec import decode_frame, read_groups
from tasks.artifacts.keys import (
    BLOBS,
    CHECKPOINTS,
    FILES,
    MANIFEST,
    RECEIPTS,
    SHARDS,
    file_name,
    manifest_key,
    receipt_name,
)
from tasks.artifacts.writer import ArtifactWriter
from tasks.storage.digests import digest
from tasks.storage.scratch_folders import copied, scratch_folder
from tasks.storage.storage import Storage

D = TypeVar("D", bound=BaseModel)

_BYTES_AT_ONCE = 1 << 24


class ArtifactStore:
    """Artifacts below one root URI (a folder, ``memory://...``, ``s3://...``).

    Building one does no I/O; it may be pickled and used from many threads and processes.
    """

    def __init__(self, root: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.storage = Storage(root, storage_options)

    @classmethod
    def of(cls, runtime: RuntimeConfig) -> Self:
        """The store that a run works in."""
        return cls(runtime.store, runtime.storage_options)

    @property
    def root(self) -> str:
        """Absolute URI or path of the store."""
        return self.storage.root

    @property
    def is_shared(self) -> bool:
        """Whether other processes see what this one writes."""
        return self.storage.is_shared

    def check_writable(self) -> None:
        """Write, read and remove a small object.

        Raises:
            StoreError: one line that names the root and the remedy.
        """
        self.storage.check_writable()

    def is_committed(self, ref: ArtifactRef) -> bool:
        """Whether readers can see the artifact."""
        return self.storage.size(manifest_key(ref)) is not None

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """The commit record.

        Raises:
            ArtifactNotFound: if the artifact is not committed.
            CorruptArtifact: if the manifest is damaged or belongs to another artifact.
        """
        manifest = self.read_document(ref, MANIFEST, Manifest)
        if manifest is None:
            raise self._not_committed(ref)
        if manifest.recipe.ref != ref:
            raise self.corrupt(ref, MANIFEST, f"is the manifest of {manifest.recipe.ref}")
        return manifest

    def manifest_digest(self, ref: ArtifactRef) -> str:
        """Digest of the commit record, which is another whenever the artifact is made again.

        Raises:
            ArtifactNotFound: if the artifact is not committed.
        """
        try:
            return digest(self.storage.read(manifest_key(ref)))
        except FileNotFoundError:
            raise self._not_committed(ref) from None

    def writer(self, recipe: Recipe, *, is_begun: bool = False) -> ArtifactWriter:
        """Start or resume an artifact; ``is_begun`` spares looking at the recipe in its place.

        Raises:
            RecipeMismatch: if its address holds another recipe.
        """
        return ArtifactWriter(self, recipe, is_begun=is_begun)

    def receipt(self, ref: ArtifactRef, index: int) -> ShardEntry | None:
        """Receipt of a finished shard, or None if it is still to be made.

        Raises:
            CorruptArtifact: if it cannot be read.
        """
        return self.read_document(ref, receipt_name(index), ShardEntry)

    def receipts(self, recipe: Recipe) -> list[ShardEntry | None]:
        """The receipts of all shards, in order."""
        return in_parallel(partial(self.receipt, recipe.ref), range(recipe.num_shards))

    def missing(self, recipe: Recipe) -> list[int]:
        """Indexes of the shards that have no receipt."""
        return [index for index, entry in enumerate(self.receipts(recipe)) if entry is None]

    def read_frame(self, ref: ArtifactRef, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """All rows of a tabular artifact, in shard order."""
        manifest = self.manifest(ref)
        empty = empty_frame(manifest.recipe.schema_id)
        frames = self._shard_frames(manifest, columns)
        return pl.concat([empty if columns is None else empty.select(columns), *frames])

    def frames(
        self, ref: ArtifactRef, columns: Sequence[str] | None = None
    ) -> Iterator[pl.DataFrame]:
        """The same rows shard by shard, one in memory at a time."""
        yield from self._shard_frames(self.manifest(ref), columns)

    def all_frames(
        self, manifest: Manifest, columns: Sequence[str] | None = None
    ) -> Iterator[pl.DataFrame]:
        """The same for whoever takes all: the bytes of a few shards are read side by side, while
        those before them are worked on."""
        read = partial(self._read_entry, manifest.recipe.ref)
        with closing(made_ahead(partial(in_parallel, read), _parts(manifest.shards))) as parts:
            for part in parts:
                while part:  # as few in memory as can be
                    yield decode_frame(part.pop(0), manifest.recipe.schema_id, columns)

    def row_groups(self, ref: ArtifactRef, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """The same rows some at a time, however many a shard has; not for JSON Lines."""
        manifest = self.manifest(ref)
        with scratch_folder() as folder:
            for shard in manifest.shards:
                with self._checked_copy(ref, shard, folder / "shard").open("rb") as file:
                    yield from read_groups(file, manifest.recipe.schema_id, columns)

    def read_shard_frame(
        self, manifest: Manifest, index: int, columns: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """Rows of one shard; with ``columns``, nothing else of them is decoded.

        Whoever reads one shard after another reads the manifest once: it is as long as they are
        many.
        """
        data = self._read_entry(manifest.recipe.ref, manifest.shards[index])
        return decode_frame(data, manifest.recipe.schema_id, columns)

    def file_names(self, ref: ArtifactRef) -> list[str]:
        """Names of an artifact's files, in order."""
        return [file_name(shard.key) for shard in self.manifest(ref).shards]

    def read_file(self, ref: ArtifactRef, name: str) -> bytes:
        """One file of an artifact made of files.

        Raises:
            ArtifactNotFound: if the artifact is not committed or has no such file.
        """
        return self._read_entry(ref, self._file_entry(ref, name))

    def file_uri(self, ref: ArtifactRef, name: str) -> str:
        """Absolute URI of one file, to show to people."""
        return self.storage.uri(f"{ref.prefix}/{self._file_entry(ref, name).key}")

    def read_uri(self, uri: str, max_bytes: int | None = None) -> bytes:
        """See ``Storage.read_uri``."""
        return self.storage.read_uri(uri, max_bytes)

    def discard(self, ref: ArtifactRef) -> None:
        """Forget an artifact, so that its stage starts from nothing.

        The manifest goes first, then receipts, then what they point at: stopped anywhere, readers
        see nothing and every receipt left still has its shard.
        """
        order = (MANIFEST, RECEIPTS, CHECKPOINTS, SHARDS, FILES, BLOBS)
        rank = {name: position for position, name in enumerate(order)}

        def position(key: str) -> int:
            return rank.get(key.removeprefix(f"{ref.prefix}/").partition("/")[0], len(rank))

        keys = [stored.key for stored in self.storage.find(ref.prefix)]
        for _, alike in groupby(sorted(keys, key=position), position):
            self.storage.delete_all(tuple(alike))
        self.storage.remove_empty_folders(ref.prefix)

    def read_document(self, ref: ArtifactRef, name: str, kind: type[D]) -> D | None:
        """One of an artifact's own JSON documents, or None if it is not there.

        Raises:
            CorruptArtifact: if it cannot be read as that document.
        """
        try:
            return kind.model_validate_json(self.storage.read(f"{ref.prefix}/{name}"))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            detail = str(error.errors()[0]["msg"]) if error.errors() else "is empty"
            raise self.corrupt(ref, name, f"is not a {kind.__name__} ({detail})") from error

    def write_document(self, ref: ArtifactRef, name: str, document: BaseModel) -> None:
        """Put one of an artifact's own JSON documents, in place of what is there."""
        self.storage.put(f"{ref.prefix}/{name}", _encoded(document))

    def create_document(self, ref: ArtifactRef, name: str, document: BaseModel) -> bool:
        """Put one of an artifact's own JSON documents unless there is one; whether it was put."""
        return self.storage.create(f"{ref.prefix}/{name}", _encoded(document))

    def corrupt(self, ref: ArtifactRef, name: str, problem: str) -> CorruptArtifact:
        """The error for a damaged object, naming it and the remedy."""
        return CorruptArtifact(
            f"{self.storage.uri(f'{ref.prefix}/{name}')}: {problem}",
            f"make it again with `sdrpn stage {ref.stage.value} --force`",
        )

    def _shard_frames(
        self, manifest: Manifest, columns: Sequence[str] | None
    ) -> Iterator[pl.DataFrame]:
        for shard in manifest.shards:
            yield self.read_shard_frame(manifest, shard.index, columns)

    def _not_committed(self, ref: ArtifactRef) -> ArtifactNotFound:
        return ArtifactNotFound(
            f"{self.storage.uri(ref.prefix)}: not committed; "
            f"make it with `sdrpn stage {ref.stage.value}`"
        )

    def _file_entry(self, ref: ArtifactRef, name: str) -> ShardEntry:
        shards = self.manifest(ref).shards
        for shard in shards:
            if file_name(shard.key) == name:
                return shard
        has = ", ".join(file_name(shard.key) for shard in shards)
        raise ArtifactNotFound(f"{self.storage.uri(ref.prefix)}: has no file {name!r}, only {has}")

    def _read_entry(self, ref: ArtifactRef, shard: ShardEntry) -> bytes:
        try:
            data = self.storage.read(f"{ref.prefix}/{shard.key}")
        except FileNotFoundError as error:
            raise self.corrupt(ref, shard.key, "is missing") from error
        self._compare(ref, shard, len(data), digest(data))
        return data

    def _checked_copy(self, ref: ArtifactRef, shard: ShardEntry, path: Path) -> Path:
        """A shard that is read from the store once, and never whole in memory."""
        try:
            with self.storage.reader(f"{ref.prefix}/{shard.key}") as file:
                sha256, num_bytes = copied(file, path)
        except FileNotFoundError as error:
            raise self.corrupt(ref, shard.key, "is missing") from error
        self._compare(ref, shard, num_bytes, sha256)
        return path

    def _compare(self, ref: ArtifactRef, shard: ShardEntry, num_bytes: int, sha256: str) -> None:
        if num_bytes != shard.num_bytes:
            problem = f"has {num_bytes} bytes, committed with {shard.num_bytes}"
            raise self.corrupt(ref, shard.key, problem)
        if sha256 != shard.sha256:
            raise self.corrupt(ref, shard.key, "does not have the digest it was committed with")


def _parts(shards: Sequence[ShardEntry]) -> Iterator[list[ShardEntry]]:
    """Shards that are read at once, in order."""
    part: list[ShardEntry] = []
    for shard in shards:
        if part and sum(one.num_bytes for one in (*part, shard)) > _BYTES_AT_ONCE:
            yield part
            part = []
        part.append(shard)
    if part:
        yield part


def _encoded(document: BaseModel) -> bytes:
    plain = document.model_dump(mode="json")
    text = json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()
