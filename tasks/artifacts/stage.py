"""Running a stage: skip what is committed, make only the shards without a receipt, commit.

``run_stage`` does it all in this process. To spread shards over workers, call its three parts:
``begin_stage`` once, ``run_shard`` anywhere and any number of times, ``finish_stage`` at the end.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from data_contracts.artifact import ArtifactRef, Recipe, ShardEntry
from data_contracts.errors import SdrpnError
from data_contracts.runtime import RuntimeConfig
from sdrpn_core.threads import in_parallel
from tasks.artifacts.device_memory import device_memory_explained, tell_of_reduced_batches
from tasks.artifacts.errors import ArtifactNotFound, CorruptArtifact
from tasks.artifacts.outdated import is_of_other_answers, is_outdated, note_answers
from tasks.artifacts.store import ArtifactStore
from tasks.artifacts.writer import ArtifactWriter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameShard:
    """Rows of one shard."""

    frame: pl.DataFrame
    statistics: Mapping[str, float] = field(default_factory=dict)
    measurements: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """What differs from run to run (times); kept with the receipt, outside of the bytes."""


@dataclass(frozen=True)
class FrameStreamShard:
    """Rows of one shard that are too many to hold: parts in their order, no key in two of them."""

    frames: Iterable[pl.DataFrame]
    statistics: Mapping[str, float]


@dataclass(frozen=True)
class FileShard:
    """One file of an artifact made of files."""

    name: str
    data: bytes
    statistics: Mapping[str, float] = field(default_factory=dict)


class NotMade(SdrpnError):
    """A run that only looks has come to something that would have to be made, or fetched, first."""

    def __init__(self, what: str, recipe: Recipe | None = None) -> None:
        super().__init__(what)
        self.recipe = recipe
        """Of the artifact that is not committed; None if even that is not known yet."""


ShardData = FrameShard | FrameStreamShard | FileShard
MakeShard = Callable[[int], ShardData]


@dataclass(frozen=True)
class StageRun:
    """Where and how stages run; nothing here changes what they make."""

    store: ArtifactStore
    runtime: RuntimeConfig
    force: bool = False
    """Discard what is there, committed or not, and make it anew. Later stages stay as they are,
    because their ids do not change; force them too if they should read the new bytes."""
    on_progress: Callable[[str, int, int | None], None] = lambda stage, num_done, num_units: None
    """Called with (stage, shards done, shards); or with what else is counted in place of the stage,
    of which nobody may know how much there will be (None)."""
    on_start: Callable[[Recipe], None] = lambda recipe: None
    """Called with the recipe of an artifact that is not committed yet, before it is made or
    finished; what a stage never tells of was committed before."""
    before_keeping: Callable[[], None] = lambda: None
    """Called when a shard has been made; what it raises keeps the shard out of the store."""
    only_looks: bool = False
    """Nothing is made, fetched or written: what is not there is ``NotMade``."""
    discarded: set[ArtifactRef] = field(default_factory=set)
    """What ``force`` has discarded so far: a run that is tried again, after a hiccup, goes on from
    what it has made since."""


def run_stage(
    run: StageRun, recipe: Recipe, make_shard: MakeShard, *, num_at_once: int = 1
) -> ArtifactRef:
    """Make an artifact unless it is committed; shards that have receipts are not made again.

    Args:
        run: where and how.
        recipe: what to make.
        make_shard: makes a shard.
        num_at_once: shards that threads make side by side, all of which are in memory; for those
            that take less time to make than to read and store, and share nothing.
    """
    missing = begin_stage(run, recipe)
    if missing is None:
        return recipe.ref
    made: list[int] = []
    num_told = 0

    def make(index: int) -> None:
        run_shard(run, recipe, index, make_shard)
        made.append(index)

    def tell() -> None:
        nonlocal num_told
        if num_told < (num_made := len(made)):
            num_told = num_made
            num_done = recipe.num_shards - len(missing) + num_made
            run.on_progress(recipe.stage.value, num_done, recipe.num_shards)

    if num_at_once == 1:
        for index in missing:
            make(index)
            tell()
    else:
        in_parallel(make, missing, num_at_once, tell)
        tell()
    return finish_stage(run, recipe)


def begin_stage(run: StageRun, recipe: Recipe) -> list[int] | None:
    """Indexes of the shards still to make, or None if the artifact is committed.

    Raises:
        RecipeMismatch: if the artifact's address holds another recipe.
        NotMade: if it is not committed and the run only looks.
    """
    if run.force and not run.only_looks and recipe.ref not in run.discarded:
        run.store.discard(recipe.ref)
        run.discarded.add(recipe.ref)
    elif _is_soundly_committed(run.store, recipe.ref):
        if not is_outdated(run.store, recipe):
            run.on_progress(recipe.stage.value, recipe.num_shards, recipe.num_shards)
            return None
        if not run.only_looks:
            run.store.discard(recipe.ref)
    if run.only_looks:
        raise NotMade(f"{recipe.ref}: is not committed", recipe)
    run.on_start(recipe)
    if is_of_other_answers(run.store, recipe):  # begun before they were made anew
        run.store.discard(recipe.ref)
    writer = run.store.writer(recipe)
    if writer.is_resumed:
        writer.renew()
    note_answers(run.store, recipe)
    missing = writer.missing()
    run.on_progress(recipe.stage.value, recipe.num_shards - len(missing), recipe.num_shards)
    return missing


def _is_soundly_committed(store: ArtifactStore, ref: ArtifactRef) -> bool:
    """A manifest that cannot be read is made again, of the receipts that are still there."""
    try:
        store.manifest(ref)
    except ArtifactNotFound:
        return False
    except CorruptArtifact as error:
        log.warning("%s: it is made again", error.what)
        return False
    return True


def run_shard(run: StageRun, recipe: Recipe, index: int, make_shard: MakeShard) -> ShardEntry:
    """Make and store one shard of a begun artifact, or return the receipt it already has."""
    writer = run.store.writer(recipe, is_begun=True)
    if earlier := writer.receipt(index):
        return earlier
    with device_memory_explained(run.runtime):
        shard = make_shard(index)
    run.before_keeping()
    return _put(writer, index, shard)


def finish_stage(run: StageRun, recipe: Recipe) -> ArtifactRef:
    """Commit an artifact whose shards all have receipts.

    Raises:
        StoreError: naming the shards that are missing.
    """
    manifest = run.store.writer(recipe).commit()
    tell_of_reduced_batches(recipe.stage, manifest.shards, run.runtime.batch_size)
    return recipe.ref


def _put(writer: ArtifactWriter, index: int, shard: ShardData) -> ShardEntry:
    match shard:
        case FrameShard(frame, statistics, measurements):
            return writer.put_frame(index, frame, statistics, measurements)
        case FrameStreamShard(frames, statistics):
            return writer.put_frames(index, frames, statistics)
        case FileShard(name, data, statistics):
            return writer.put_bytes(index, name, data, statistics=statistics)
