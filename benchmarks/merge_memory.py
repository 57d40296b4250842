"""Memory and rate of merging labels: ``python -m benchmarks.merge_memory [--rows 200000]``.

Two label artifacts of equally many rows, a tenth of which occur in both. The merge runs in a
process of its own, so that its peak is its own; what that process had loaded before is given too.
"""

import argparse
import hashlib
import json
import tempfile
import time
from typing import Any

import numpy as np
import polars as pl

from benchmarks.build_rate import in_own_process, peak_mib
from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.enums import Stage
from data_contracts.registry import SchemaId
from data_contracts.runtime import RuntimeConfig
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.merge_labels import merge_labels
from tasks.shard_statistics import dataset_statistic, status_statistic

ROWS_PER_SHARD = 2048


def label_rows(first: int, last: int, grid: int) -> pl.DataFrame:
    """Rows of ``pseudo_label.v2``: one square of foreground in the middle of background."""
    numbers = range(first, last)
    square = np.zeros((grid, grid), np.int8)
    low, high = grid // 4, grid // 2
    square[low:high, low:high] = 1
    num_foreground = int(square.sum())
    labels = np.broadcast_to(square.ravel(), (len(numbers), grid * grid)).copy()
    box = {"box_x0": low, "box_y0": low, "box_x1": high, "box_y1": high}
    constants = {
        "dataset": "gqa",
        "kind": "natural",
        "image_sha256": None,
        "question": "what is it?",
        "grid_height": grid,
        "grid_width": grid,
        "image_width": 640,
        "image_height": 480,
        "pad_left": 0,
        "pad_top": 80,
        "canvas_width": 640,
        "canvas_height": 640,
        **box,
        "num_foreground": num_foreground,
        "num_background": grid * grid - num_foreground,
        "num_ignore": 0,
        "max_attention": 0.1,
        "status": "ok",
        "reason": "",
    }
    return pl.DataFrame(
        {
            "question_id": [hashlib.sha256(b"%d" % n).hexdigest()[:20] for n in numbers],
            "image_uri": [f"images/gqa/{n}.jpg" for n in numbers],
            "answers": [["a"]] * len(numbers),
            "labels": pl.Series(labels).arr.to_list(),
        }
    ).with_columns(pl.lit(value).alias(name) for name, value in constants.items())


def write_labels(store: ArtifactStore, first: int, last: int, grid: int) -> ArtifactRef:
    """A committed artifact of labels with these numbers."""
    starts = range(first, last, ROWS_PER_SHARD)
    recipe = Recipe(
        stage=Stage.MAKE_LABELS,
        stage_version=0,
        schema_id=SchemaId.PSEUDO_LABEL,
        config={"first": first, "last": last, "grid": grid},
        num_shards=len(starts),
    )
    writer = store.writer(recipe)
    for index, start in enumerate(starts):
        rows = label_rows(start, min(start + ROWS_PER_SHARD, last), grid)
        counts = {status_statistic("ok"): rows.height}
        writer.put_frame(index, rows, {**counts, dataset_statistic("gqa"): rows.height})
    writer.commit()
    return recipe.ref


def write_overlapping(root: str, num_rows: int, grid: int = 24) -> list[ArtifactRef]:
    """Two committed artifacts of labels, so many rows together; a tenth occur in both."""
    store = ArtifactStore(root)
    half, shared = num_rows // 2, num_rows // 10
    return [
        write_labels(store, 0, half, grid),
        write_labels(store, half - shared, num_rows - shared, grid),
    ]


def merge(root: str, labels: list[ArtifactRef]) -> dict[str, Any]:
    """What merging took."""
    before = peak_mib()
    start = time.perf_counter()
    store = ArtifactStore(root)
    manifest = store.manifest(merge_labels(StageRun(store, RuntimeConfig()), labels))
    return {
        "rows": manifest.num_rows,
        "duplicates": int(manifest.statistics["duplicates"]),
        "label_set_mib": round(sum(shard.num_bytes for shard in manifest.shards) / 2**20),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_mib": round(peak_mib()),
        "peak_mib_before": round(before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--grid", type=int, default=24)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        labels = write_overlapping(folder, options.rows, options.grid)
        print(json.dumps(in_own_process(merge, folder, labels)))


if __name__ == "__main__":
    main()
