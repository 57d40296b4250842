"""A small stage for tests of the store: rows and files that depend only on the shard's index."""

import hashlib
from collections.abc import Mapping

import polars as pl

from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.enums import Stage
from data_contracts.registry import SchemaId
from data_contracts.runtime import RuntimeConfig
from tasks.artifacts.stage import FileShard, FrameShard, StageRun
from tasks.artifacts.store import ArtifactStore


def keys_of(store: ArtifactStore, ref: ArtifactRef) -> list[str]:
    """Every object of an artifact, below its prefix."""
    return [o.key.removeprefix(f"{ref.prefix}/") for o in store.storage.find(ref.prefix)]


def shard_reads(store: ArtifactStore, ref: ArtifactRef, reads: Mapping[str, int]) -> list[int]:
    """How often each of an artifact's shards was read, see the fixture ``reads``."""
    return [reads[f"{ref.prefix}/{shard.key}"] for shard in store.manifest(ref).shards]


def source_recipe(num_shards: int = 3, **config: object) -> Recipe:
    """Recipe of an artifact of ``source_file.v1`` rows."""
    return Recipe(
        stage=Stage.DOWNLOAD,
        stage_version=1,
        schema_id=SchemaId.SOURCE_FILE_V1,
        config=config,
        num_shards=num_shards,
    )


def files_recipe(num_shards: int = 2, **config: object) -> Recipe:
    """Recipe of an artifact made of plain files."""
    return Recipe(
        stage=Stage.REPORT,
        stage_version=1,
        schema_id=SchemaId.FILES,
        config=config,
        num_shards=num_shards,
    )


def source_frame(index: int, num_rows: int = 4) -> pl.DataFrame:
    """Rows of one shard, in descending order of their key."""
    names = [f"{index}/{row}.png" for row in reversed(range(num_rows))]
    return pl.DataFrame(
        {
            "path": names,
            "uri": [f"images/{name}" for name in names],
            "num_bytes": [10 * index + row for row in range(num_rows)],
            "sha256": [hashlib.sha256(name.encode()).hexdigest() for name in names],
        }
    )


def make_source_shard(index: int) -> FrameShard:
    """What ``run_stage`` calls for a shard of rows."""
    return FrameShard(source_frame(index), {"files": 4, "seconds": 0.5})


def make_file_shard(index: int) -> FileShard:
    """What ``run_stage`` calls for a file."""
    return FileShard(f"part-{index}.txt", f"part {index}".encode() * 100)


def stage_run(store: ArtifactStore, **settings: object) -> StageRun:
    """A run with default runtime settings."""
    return StageRun(store=store, runtime=RuntimeConfig(), **settings)
