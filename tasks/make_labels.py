"""Stage ``make-labels``: attention maps become pseudo-labels, shard by shard."""

import logging
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from data_contracts.artifact import ArtifactRef, Manifest, Recipe
from data_contracts.enums import ExtractionStatus, LabelStatus
from data_contracts.label_settings import LabelSettings
from data_contracts.registry import frame_of
from sdrpn_core.pseudo_labels import PseudoLabels, make_pseudo_labels
from tasks import recipes
from tasks.artifacts.stage import FrameShard, StageRun, run_stage
from tasks.shard_statistics import dataset_statistic, status_statistic

log = logging.getLogger(__name__)

Row = dict[str, Any]

_MANY_OVERLONG = 0.05
"""Share of answers without an end that is worth a warning."""

_CARRIED = (
    *("question_id", "dataset", "kind", "image_uri", "image_sha256", "question", "answers"),
    *("grid_height", "grid_width", "image_width", "image_height"),
    *("pad_left", "pad_top", "canvas_width", "canvas_height"),
)
# Samples are labelled together if nothing about their maps' shapes differs.
_ALIKE = ("grid_height", "grid_width", "has_sink")
_PLACEMENT = ("image_width", "image_height", "canvas_width", "canvas_height")
REASONS = {
    LabelStatus.OK: "",
    LabelStatus.NO_ATTENTION: "the attention map is zero or not finite",
    LabelStatus.NO_FOREGROUND: "only sinks or padding are attended to",
    LabelStatus.WEAK_ATTENTION: "the strongest cell is below min_max_attention",
    LabelStatus.AMBIGUOUS: "another region is nearly as strong, by max_rival_ratio",
    LabelStatus.BOX_TOO_LARGE: "the box covers more than max_box_area_ratio of the grid",
}
"""What rows say of labels that were made, by status."""


def make_labels(run: StageRun, attention: ArtifactRef, settings: LabelSettings) -> ArtifactRef:
    """Label every row of an attention artifact; what cannot be labelled says why."""
    manifest = run.store.manifest(attention)
    recipe = recipes.labels_recipe(manifest, settings)

    def make_shard(index: int) -> FrameShard:
        frame = run.store.read_shard_frame(manifest, index).with_columns(
            has_sink=pl.col("sink").is_not_null()
        )
        is_ok = pl.col("status") == ExtractionStatus.OK.value
        rows = [_not_extracted(row) for row in frame.filter(~is_ok).iter_rows(named=True)]
        for _, alike in frame.filter(is_ok).group_by(_ALIKE, maintain_order=True):
            rows += _label(alike, settings)
        counts: Counter[str] = Counter(status_statistic(row["status"]) for row in rows)
        counts.update(dataset_statistic(row["dataset"]) for row in rows)
        return FrameShard(frame_of(rows, recipe.schema_id), counts)

    def begin(recipe: Recipe) -> None:
        _warn_of_overlong_answers(manifest)
        run.on_start(recipe)

    return run_stage(replace(run, on_start=begin), recipe, make_shard)


def _warn_of_overlong_answers(attention: Manifest) -> None:
    """Say how many questions are lost to answers without an end, if they are many."""
    name = status_statistic(ExtractionStatus.OVERLONG_RESPONSE.value)
    num_overlong = int(attention.statistics.get(name, 0))
    if num_overlong > _MANY_OVERLONG * attention.num_rows:
        log.warning(
            "%d of %d answers do not end within the tokens allowed, and give no labels: raise "
            "extraction.max_new_tokens (max_conversation_tokens for given answers)",
            num_overlong,
            attention.num_rows,
        )


def _label(frame: pl.DataFrame, settings: LabelSettings) -> list[Row]:
    """Labels of samples on one grid."""
    first = frame.row(0, named=True)
    shape = (frame.height, first["grid_height"], first["grid_width"])
    made = make_pseudo_labels(
        _maps(frame, "grounding", shape),
        _maps(frame, "sink", shape) if first["has_sink"] else None,
        settings,
        frame.select(_PLACEMENT).to_numpy(),
    )
    return [_row(row, made, index) for index, row in enumerate(frame.iter_rows(named=True))]


def _maps(frame: pl.DataFrame, column: str, shape: tuple[int, int, int]) -> np.ndarray:
    return frame[column].explode(empty_as_null=False).to_numpy().reshape(shape)


def _row(row: Row, made: PseudoLabels, index: int) -> Row:
    status = made.status[index]
    box = made.boxes[index].tolist() if made.boxes[index][0] >= 0 else [None] * 4
    return {name: row[name] for name in _CARRIED} | {
        "labels": made.labels[index].ravel().tolist(),
        **dict(zip(("box_x0", "box_y0", "box_x1", "box_y1"), box, strict=True)),
        "num_foreground": int(made.num_foreground[index]),
        "num_background": int(made.num_background[index]),
        "num_ignore": int(made.num_ignore[index]),
        "max_attention": float(made.max_attention[index]),
        "status": status.value,
        "reason": REASONS[status],
    }


def _not_extracted(row: Row) -> Row:
    return {name: row[name] for name in _CARRIED} | {
        "labels": [],
        **dict.fromkeys(("box_x0", "box_y0", "box_x1", "box_y1")),
        "num_foreground": 0,
        "num_background": 0,
        "num_ignore": 0,
        "max_attention": 0.0,
        "status": LabelStatus.NOT_EXTRACTED.value,
        "reason": f"{row['status']}: {row['reason']}",
    }
