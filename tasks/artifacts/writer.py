"""Writing one artifact: its recipe first, then shards and their receipts, the manifest last.

The protocol is described in ``tasks/artifacts/store.py``.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from data_contracts.artifact import Manifest, Recipe, ShardEntry
from data_contracts.registry import SchemaId
from sdrpn_core.threads import in_parallel
from tasks.artifacts.checkpoints import load_latest_checkpoint, save_checkpoint
from tasks.artifacts.errors import ArtifactNotFound, CorruptArtifact, RecipeMismatch
from tasks.artifacts.frame_codec import encode_frame, extension, write_frames
from tasks.artifacts.keys import (
    BLOBS,
    FILES,
    MANIFEST,
    RECIPE,
    SHARDS,
    file_name,
    receipt_name,
)
from tasks.artifacts.provenance import collect_provenance
from tasks.storage.digests import digest, digest_file
from tasks.storage.errors import StoreError
from tasks.storage.scratch_folders import scratch_folder

if TYPE_CHECKING:
    from tasks.artifacts.store import ArtifactStore

_NEW = timedelta(hours=1)
"""So young, nothing is abandoned; what a run goes on from at once stays untouched."""


class ArtifactWriter:
    """Writes one artifact, shard by shard, from any number of processes."""

    def __init__(self, store: "ArtifactStore", recipe: Recipe, *, is_begun: bool = False) -> None:
        """Begin the artifact, or go on with it.

        Args:
            store: where it is.
            recipe: what it is made by.
            is_begun: its recipe is known to be in place, and is not looked at again.
        """
        self.recipe = recipe
        self.ref = recipe.ref
        self._store = store
        self._storage = store.storage
        self.is_resumed = is_begun or not self._claim()
        """Whether somebody began the artifact before."""

    def _claim(self) -> bool:
        """Put the recipe at its address, or check that the one there is ours; True: it was put."""
        is_first = self._store.create_document(self.ref, RECIPE, self.recipe)
        try:
            stored = self._store.read_document(self.ref, RECIPE, Recipe)
        except CorruptArtifact as error:
            raise RecipeMismatch(str(error)) from error
        if stored != self.recipe:
            uri = self._storage.uri(f"{self.ref.prefix}/{RECIPE}")
            raise RecipeMismatch(
                f"{uri}: holds another recipe than its address says; "
                f"make it again with `sdrpn stage {self.ref.stage.value} --force`"
            )
        return is_first

    def renew(self) -> None:
        """Write the recipe again as it is, unless it is new: nobody then takes all for abandoned.

        The first shard of a run that goes on may take hours.
        """
        key = f"{self.ref.prefix}/{RECIPE}"
        stored = self._storage.describe_one(key)
        if stored is None or datetime.now(UTC) - stored.modified > _NEW:
            self._store.write_document(self.ref, RECIPE, self.recipe)

    def receipt(self, index: int) -> ShardEntry | None:
        """Receipt of a finished shard, or None if it is still to be made."""
        return self._store.receipt(self.ref, index)

    def missing(self) -> list[int]:
        """Indexes of the shards that have no receipt."""
        return self._store.missing(self.recipe)

    def put_frame(
        self,
        index: int,
        frame: pl.DataFrame,
        statistics: Mapping[str, float] | None = None,
        measurements: Mapping[str, Sequence[float]] | None = None,
    ) -> ShardEntry:
        """Check and write one shard of rows; returns its receipt (an earlier one if there is).

        Raises:
            ContractError: if rows break the contract of the recipe's schema.
        """
        data = encode_frame(frame, self.recipe.schema_id)
        key = self._frame_key(index, digest(data))
        return self._put(index, key, data, frame.height, statistics, measurements)

    def put_frames(
        self, index: int, frames: Iterable[pl.DataFrame], statistics: Mapping[str, float]
    ) -> ShardEntry:
        """Like ``put_frame`` for rows that come in parts, of which only a few are in memory.

        They stay in the order they come in, and no primary key may occur in two parts.
        """
        with scratch_folder() as folder:
            path = folder / "shard"
            num_rows = write_frames(path, frames, self.recipe.schema_id)
            sha256 = digest_file(path)
            entry = ShardEntry(
                index=index,
                key=self._frame_key(index, sha256),
                sha256=sha256,
                num_bytes=path.stat().st_size,
                num_rows=num_rows,
                statistics=dict(statistics),
            )
            self._storage.put_file(f"{self.ref.prefix}/{entry.key}", path)
        return self._receive(entry)

    def put_bytes(
        self,
        index: int,
        name: str,
        data: bytes,
        *,
        statistics: Mapping[str, float] | None = None,
    ) -> ShardEntry:
        """Write one file of an artifact made of files; returns its receipt."""
        if self.recipe.schema_id != SchemaId.FILES:
            raise ValueError(f"{self.recipe.schema_id} holds rows: use put_frame")
        key = f"{FILES}/{digest(data)[:12]}/{name}"
        return self._put(index, key, data, 0, statistics)

    def put_blob(self, data: bytes, suffix: str = "") -> str:
        """Keep bytes that rows point at; returns their URI, relative to the store's root.

        Named by content. Write blobs before the shard whose rows name them; their digests belong
        in those rows, because the manifest does not list blobs.
        """
        key = f"{self.ref.prefix}/{BLOBS}/{digest(data)}{suffix}"
        if self._storage.size(key) != len(data):
            self._storage.put(key, data)
        return key

    def put_blob_file(self, path: Path, sha256: str, suffix: str = "", *, may_link: bool) -> str:
        """Like ``put_blob`` for a file of any size; see ``Storage.put_file`` on links."""
        key = f"{self.ref.prefix}/{BLOBS}/{sha256}{suffix}"
        if self._storage.size(key) != path.stat().st_size:
            self._storage.put_file(key, path, may_link=may_link)
        return key

    def commit(self) -> Manifest:
        """Publish the artifact once every shard has its receipt; returns the stored manifest.

        Raises:
            StoreError: naming the shards that are missing.
            CorruptArtifact: if a shard's object is missing or has the wrong size.
        """
        try:
            return self._store.manifest(self.ref)
        except ArtifactNotFound:
            is_damaged = False
        except CorruptArtifact:
            is_damaged = True  # its shards have their receipts: the same manifest is made of them
        shards = self._checked_shards()
        names = {name for shard in shards for name in shard.statistics}
        manifest = Manifest(
            recipe=self.recipe,
            shards=shards,
            statistics={
                name: math.fsum(shard.statistics.get(name, 0.0) for shard in shards)
                for name in sorted(names)
            },
            provenance=collect_provenance(),
        )
        if is_damaged:
            self._store.write_document(self.ref, MANIFEST, manifest)
        else:
            self._store.create_document(self.ref, MANIFEST, manifest)
        return self._store.manifest(self.ref)

    def save_checkpoint(self, step: int, files: Mapping[str, bytes]) -> None:
        """Keep a resume point, of which the latest two stay; only this stage reads them."""
        save_checkpoint(self._storage, self.ref.prefix, step, files)

    def latest_checkpoint(self) -> tuple[int, dict[str, bytes]] | None:
        """Highest step whose files are all there and undamaged, with the files."""
        return load_latest_checkpoint(self._storage, self.ref.prefix)

    def _put(
        self,
        index: int,
        key: str,
        data: bytes,
        num_rows: int,
        statistics: Mapping[str, float] | None,
        measurements: Mapping[str, Sequence[float]] | None = None,
    ) -> ShardEntry:
        if not 0 <= index < self.recipe.num_shards:
            raise ValueError(f"shard {index} of {self.recipe.num_shards} does not exist")
        entry = ShardEntry(
            index=index,
            key=key,
            sha256=digest(data),
            num_bytes=len(data),
            num_rows=num_rows,
            statistics=dict(statistics or {}),
            measurements={name: tuple(series) for name, series in (measurements or {}).items()},
        )
        self._storage.put(f"{self.ref.prefix}/{key}", data)
        return self._receive(entry)

    def _frame_key(self, index: int, sha256: str) -> str:
        name = f"{index:05d}-of-{self.recipe.num_shards:05d}-{sha256[:12]}"
        return f"{SHARDS}/{name}{extension(self.recipe.schema_id)}"

    def _receive(self, entry: ShardEntry) -> ShardEntry:
        """Give a stored shard its receipt, unless another writer's came first."""
        self._store.create_document(self.ref, receipt_name(entry.index), entry)
        stored = self.receipt(entry.index)
        if stored is None:
            raise StoreError(f"{self._storage.uri(self.ref.prefix)}: discarded while being written")
        return stored

    def _checked_shards(self) -> tuple[ShardEntry, ...]:
        receipts = self._store.receipts(self.recipe)
        if missing := [str(index) for index, entry in enumerate(receipts) if entry is None]:
            some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise StoreError(
                f"{self._storage.uri(self.ref.prefix)}: cannot be committed, {len(missing)} of "
                f"{len(receipts)} shards are missing ({some}); "
                f"make them with `sdrpn stage {self.ref.stage.value}`"
            )
        shards = tuple(entry for entry in receipts if entry is not None)
        sizes = in_parallel(self._storage.size, [f"{self.ref.prefix}/{s.key}" for s in shards])
        for shard, size in zip(shards, sizes, strict=True):
            if size != shard.num_bytes:
                found = "is missing" if size is None else f"has {size} bytes"
                problem = f"{found}, its receipt says {shard.num_bytes}"
                raise self._store.corrupt(self.ref, shard.key, problem)
        if self.recipe.schema_id == SchemaId.FILES:
            _check_unique([file_name(shard.key) for shard in shards])
        return shards


def _check_unique(names: list[str]) -> None:
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"two files of one artifact are named {repeated[0]!r}")
