"""Looking after a store: what is in it, what one artifact holds, what can go.

Unlike readers, these functions list, because their subject is what listing alone can find:
unfinished artifacts and leftovers. They touch only folders named ``{stage}/{artifact_id}``. A
damaged artifact is told of and left alone; it never hides the others.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from pydantic import ValidationError

from data_contracts.artifact import ArtifactRef, Manifest, Recipe
from data_contracts.enums import RecordStatus, Stage
from data_contracts.registry import SchemaId, empty_frame
from data_contracts.settings_files import ConfigError
from sdrpn_core.threads import in_parallel
from tasks.artifacts.errors import ArtifactNotFound, CorruptArtifact
from tasks.artifacts.keys import BLOBS, INPUTS, MANIFEST, RECIPE, SAME_AS, receipt_name
from tasks.artifacts.store import ArtifactStore
from tasks.storage.errors import scheme_of
from tasks.storage.stored_objects import StoredObject

log = logging.getLogger(__name__)

DEFAULT_AGE = timedelta(days=7)

_UNFINISHED = "all of it: never finished; once deleted, a rerun starts it afresh"
_OF_REJECTED = (
    *("question_id", "dataset", "source_id", "turn", "image_uri", "question"),
    *("status", "reason"),
)
_LEFTOVERS = "checkpoints and partial files: it is finished and stays"


@dataclass(frozen=True)
class ArtifactSummary:
    """One line of a listing."""

    ref: ArtifactRef
    is_committed: bool
    created_at: datetime
    """Time of the commit, or of the last write if there is none."""
    num_done: int = 0
    """Shards that have a receipt."""
    num_shards: int = 0
    num_rows: int = 0
    problem: str = ""
    """Why nothing can be known of a damaged artifact, and the remedy; such a one has no shards."""


@dataclass(frozen=True)
class Garbage:
    """Objects of one artifact that nothing needs, and which and why."""

    ref: ArtifactRef
    reason: str
    keys: tuple[str, ...]
    """Below the store's root; every key of the artifact if it goes as a whole."""
    num_bytes: int
    is_whole_artifact: bool


def require_store(store: ArtifactStore) -> None:
    """Tell a store that is not there from an empty one; on a service, both are alike.

    Raises:
        ConfigError: if it would be a folder that does not exist.
    """
    if scheme_of(store.root) != "file":
        return
    try:
        os.stat(store.root)
    except FileNotFoundError:
        raise ConfigError(
            f"{store.root}: no store is there; check --store (or `store` of the --runtime file)"
        ) from None
    except NotADirectoryError:
        pass  # what reads it says so


def list_artifacts(store: ArtifactStore, stage: Stage | None = None) -> list[ArtifactSummary]:
    """Every artifact, unfinished and damaged ones too, by stage and then oldest first."""
    summaries = []
    for each_stage in Stage if stage is None else (stage,):
        found = [_summary(store, ref) for ref in _refs(store, each_stage)]
        summaries += sorted((s for s in found if s), key=lambda s: (s.created_at, str(s.ref)))
    return summaries


def stored_bytes(store: ArtifactStore, refs: Sequence[ArtifactRef]) -> list[int]:
    """What each artifact takes: shards, and also blobs, resume points and its own records."""

    def of_one(ref: ArtifactRef) -> int:
        return sum(stored.num_bytes for stored in store.storage.find(ref.prefix))

    return in_parallel(of_one, refs)


def committed_artifacts(store: ArtifactStore, stage: Stage) -> list[Manifest]:
    """Committed artifacts of a stage, oldest first; damaged ones are warned about and left out.

    Of unfinished ones nothing is read: a run that looks here may have thousands of receipts.
    """
    found = []
    for ref in _refs(store, stage):
        try:
            found.append(store.manifest(ref))
        except ArtifactNotFound:
            continue
        except CorruptArtifact as error:
            log.warning("skipped: %s", error)
    return sorted(found, key=lambda made: (made.created_at, str(made.recipe.ref)))


def describe(store: ArtifactStore, ref: ArtifactRef) -> dict[str, Any]:
    """Everything known of one artifact, as plain data: its manifest, or how far it has come.

    Raises:
        ArtifactNotFound: if nothing is stored at its address.
    """
    manifest = _manifest(store, ref)
    if manifest is not None:
        facts = {"is_committed": True, "num_rows": manifest.num_rows}
        return {"ref": str(ref), **facts, **manifest.model_dump(mode="json")}
    recipe = _recipe(store, ref)
    if recipe is None:
        raise ArtifactNotFound(f"{store.storage.uri(ref.prefix)}: nothing is stored there")
    return {
        "ref": str(ref),
        "is_committed": False,
        "missing_shards": store.missing(recipe),
        "recipe": recipe.model_dump(mode="json"),
    }


def rejected_rows(store: ArtifactStore, ref: ArtifactRef) -> Iterator[dict[str, Any]]:
    """Rows that cannot be used: which they are, status and reason; one shard in memory at a time.

    Raises:
        ArtifactNotFound: if the artifact is not committed.
        ConfigError: if its rows have no status, or it has no rows.
    """
    schema = store.manifest(ref).recipe.schema_id
    columns = [] if schema == SchemaId.FILES else empty_frame(schema).columns
    if "status" not in columns:
        raise ConfigError(
            f"{ref}: has no rows with a status; build-jsonl, extract-attention, make-labels and "
            "merge-labels have"
        )
    wanted = [name for name in _OF_REJECTED if name in columns]
    for frame in store.frames(ref, wanted):
        yield from frame.filter(pl.col("status").cast(pl.String) != RecordStatus.OK).to_dicts()


def collect_garbage(
    store: ArtifactStore,
    *,
    older_than: timedelta = DEFAULT_AGE,
    dry_run: bool = True,
    on_young: Callable[[ArtifactRef], None] = lambda ref: None,
) -> list[Garbage]:
    """Find, and unless ``dry_run`` delete, what nothing needs and nobody wrote to of late.

    That is: artifacts that were never committed; of committed ones, checkpoints, shards that lost a
    race and partial files. ``on_young`` is told of each artifact that has some of these which were
    written to of late.
    """
    limit = datetime.now(UTC) - older_than
    garbage = []
    for ref in [ref for stage in Stage for ref in _refs(store, stage)]:
        item = _garbage(store, ref, limit, on_young)
        if item is None:
            continue
        if not dry_run:  # before the next one is looked at: a run may go on with this one meanwhile
            _delete(store, item)
        garbage.append(item)
    return garbage


def _refs(store: ArtifactStore, stage: Stage) -> Iterator[ArtifactRef]:
    for name in store.storage.folders(stage.value):
        try:
            yield ArtifactRef(stage=stage, artifact_id=name)
        except ValidationError:
            continue  # not an artifact: none of our business


def _summary(store: ArtifactStore, ref: ArtifactRef) -> ArtifactSummary | None:
    """What is known of an artifact; None of what another process has discarded meanwhile, or left
    in an interrupted discard (garbage collection sees that)."""
    try:
        manifest = _manifest(store, ref)
        if manifest is None:
            return _unfinished_summary(store, ref)
    except CorruptArtifact as error:
        written_at = _last_write(store, ref)
        if written_at is None:
            return None
        return ArtifactSummary(ref, False, written_at, problem=str(error))
    return ArtifactSummary(
        ref=ref,
        is_committed=True,
        num_done=manifest.recipe.num_shards,
        num_shards=manifest.recipe.num_shards,
        num_rows=manifest.num_rows,
        created_at=manifest.created_at,
    )


def _unfinished_summary(store: ArtifactStore, ref: ArtifactRef) -> ArtifactSummary | None:
    recipe = _recipe(store, ref)
    if recipe is None:
        return None
    shards = [shard for shard in store.receipts(recipe) if shard is not None]
    written_at = _last_write(store, ref)
    if written_at is None:
        return None
    return ArtifactSummary(
        ref=ref,
        is_committed=False,
        num_done=len(shards),
        num_shards=recipe.num_shards,
        num_rows=sum(shard.num_rows for shard in shards),
        created_at=written_at,
    )


def _manifest(store: ArtifactStore, ref: ArtifactRef) -> Manifest | None:
    try:
        return store.manifest(ref)
    except ArtifactNotFound:
        return None


def _recipe(store: ArtifactStore, ref: ArtifactRef) -> Recipe | None:
    """Of an artifact that is not committed; nobody who only looks may claim its address."""
    recipe = store.read_document(ref, RECIPE, Recipe)
    if recipe is not None and recipe.ref != ref:
        raise store.corrupt(ref, RECIPE, f"is the recipe of {recipe.ref}")
    return recipe


def _last_write(store: ArtifactStore, ref: ArtifactRef) -> datetime | None:
    return max((stored.modified for stored in store.storage.find(ref.prefix)), default=None)


def _garbage(
    store: ArtifactStore,
    ref: ArtifactRef,
    limit: datetime,
    on_young: Callable[[ArtifactRef], None],
) -> Garbage | None:
    objects = store.storage.find(ref.prefix)
    try:
        manifest = _manifest(store, ref)
    except CorruptArtifact as error:
        log.warning("left alone: %s", error)
        return None
    if manifest:
        committed = _committed_names(manifest)
        leftovers = [
            stored
            for stored in objects
            if not _is_needed(stored.key.removeprefix(f"{ref.prefix}/"), committed)
        ]
        old = [stored for stored in leftovers if stored.modified < limit]
        if len(old) < len(leftovers):
            on_young(ref)
        return _item(ref, _LEFTOVERS, old, is_whole_artifact=False)
    if any(stored.modified >= limit for stored in objects):
        on_young(ref)
        return None
    return _item(ref, _UNFINISHED, objects, is_whole_artifact=True)


def _is_needed(name: str, committed: set[str]) -> bool:
    is_blob = name.startswith(f"{BLOBS}/") and not name.endswith(".partial")
    return is_blob or name in committed


def _committed_names(manifest: Manifest) -> set[str]:
    receipts = {receipt_name(shard.index) for shard in manifest.shards}
    return {RECIPE, INPUTS, MANIFEST, SAME_AS} | receipts | {shard.key for shard in manifest.shards}


def _item(
    ref: ArtifactRef, reason: str, objects: list[StoredObject], *, is_whole_artifact: bool
) -> Garbage | None:
    keys = tuple(stored.key for stored in objects)
    num_bytes = sum(stored.num_bytes for stored in objects)
    return Garbage(ref, reason, keys, num_bytes, is_whole_artifact) if keys else None


def _delete(store: ArtifactStore, item: Garbage) -> None:
    if item.is_whole_artifact:
        store.discard(item.ref)
    else:
        store.storage.delete_all(item.keys)
        store.storage.remove_empty_folders(item.ref.prefix)
