"""Label artifacts of any size, a tenth of whose questions occur in two of them."""

import hashlib

import numpy as np
import polars as pl

from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.enums import Stage
from data_contracts.registry import SchemaId
from tasks.artifacts.store import ArtifactStore
from tasks.shard_statistics import dataset_statistic, status_statistic

ROWS_PER_SHARD = 2048
GRID = 24


def label_rows(first: int, last: int, grid: int = GRID) -> pl.DataFrame:
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


def write_labels(store: ArtifactStore, first: int, last: int) -> ArtifactRef:
    """A committed artifact of labels with these numbers."""
    starts = range(first, last, ROWS_PER_SHARD)
    recipe = Recipe(
        stage=Stage.MAKE_LABELS,
        stage_version=0,
        schema_id=SchemaId.PSEUDO_LABEL,
        config={"first": first, "last": last, "grid": GRID},
        num_shards=len(starts),
    )
    writer = store.writer(recipe)
    for index, start in enumerate(starts):
        rows = label_rows(start, min(start + ROWS_PER_SHARD, last))
        counts = {status_statistic("ok"): rows.height}
        writer.put_frame(index, rows, {**counts, dataset_statistic("gqa"): rows.height})
    writer.commit()
    return recipe.ref


def write_overlapping(root: str, num_rows: int) -> list[ArtifactRef]:
    """Two committed artifacts of labels, so many rows together; a tenth occur in both."""
    store = ArtifactStore(root)
    half, shared = num_rows // 2, num_rows // 10
    return [
        write_labels(store, 0, half),
        write_labels(store, half - shared, num_rows - shared),
    ]
