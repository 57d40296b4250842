"""Which recipe each stage follows: every decision about artifact identity, and nothing else.

Pure functions of settings and of the manifests of the inputs. A setting that cannot change the
bytes (batch sizes, rows per shard beyond the number of shards, failure limits) is left out, so that
changing it recomputes nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from data_contracts.artifact import Manifest, Recipe
from data_contracts.configs import RecordsConfig, SceneSource
from data_contracts.enums import RecordStatus, Stage
from sdrpn_core import records

DOWNLOAD_VERSION = 1
IMAGES_PER_SHARD = 256

NUM_RECORDS = "num_records"
"""Statistic of a download: records in its mix file."""


def status_statistic(status: str) -> str:
    """Name of the statistic that counts rows of one status."""
    return f"status.{status}"


def download_recipe(identity: Mapping[str, Any], num_images: int) -> Recipe:
    """Shard 0 holds the mix file and the true boxes, the others images.

    Args:
        identity: all that the source's bytes depend on.
        num_images: different images that the records name.
    """
    return Recipe(
        stage=Stage.DOWNLOAD,
        stage_version=DOWNLOAD_VERSION,
        schema_id="source_file.v1",
        config=dict(identity),
        num_shards=1 + _num_shards(num_images, IMAGES_PER_SHARD),
    )


def scenes_recipe(source: SceneSource, generator_version: int) -> Recipe:
    """Generated scenes depend on their settings alone, whatever they are called."""
    settings = source.model_dump(mode="json", exclude={"name"})
    return download_recipe({**settings, "generator": generator_version}, source.num_images)


def image_range(num_images: int, recipe: Recipe, index: int) -> range:
    """Images, in order of their paths, that a download's shard (from 1) holds."""
    return shard_range(num_images, recipe.num_shards - 1, index - 1)


def records_recipe(files: Manifest, source_name: str, settings: RecordsConfig) -> Recipe:
    """Questions of one source, spread evenly over shards."""
    config = settings.model_dump(mode="json", exclude={"rows_per_shard"})
    num_records = int(files.statistics[NUM_RECORDS])
    num_rows = min(num_records, settings.max_records or num_records)
    return Recipe(
        stage=Stage.BUILD_JSONL,
        stage_version=records.STAGE_VERSION,
        schema_id="qa_record.v1",
        config={"source": source_name, **config},
        inputs=(str(files.recipe.ref),),
        num_shards=max(1, _num_shards(num_rows, settings.rows_per_shard)),
    )


def num_usable(records_manifest: Manifest) -> int:
    """Questions that can be asked."""
    return int(records_manifest.statistics.get(status_statistic(RecordStatus.OK), 0))


def shard_range(num_rows: int, num_shards: int, index: int) -> range:
    """Rows of one shard when rows are spread evenly, in order."""
    return range(index * num_rows // num_shards, (index + 1) * num_rows // num_shards)


def overlapping(counts: Sequence[int], wanted: range) -> list[tuple[int, range]]:
    """Where a range of rows lies in consecutive shards of these row counts.

    Returns:
        (shard, rows within it) of each shard that holds any of the range.
    """
    found = []
    start = 0
    for index, count in enumerate(counts):
        low, high = max(wanted.start, start), min(wanted.stop, start + count)
        if low < high:
            found.append((index, range(low - start, high - start)))
        start += count
    return found


def _num_shards(num_rows: int, rows_per_shard: int) -> int:
    return math.ceil(num_rows / rows_per_shard)
