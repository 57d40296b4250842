"""Stage ``make-labels``: attention maps become pseudo-labels, shard by shard."""

import logging
from dataclasses import replace

import numpy as np
import polars as pl

from data_contracts.artifact import ArtifactRef, Manifest, Recipe
from data_contracts.enums import ExtractionStatus, LabelStatus
from data_contracts.label_settings import LabelSettings
from sdrpn_core.pseudo_labels import make_pseudo_labels
from tasks import recipes
from tasks.artifacts.stage import FrameShard, StageRun, run_stage
from tasks.shard_statistics import dataset_statistic, status_statistic

log = logging.getLogger(__name__)

_MANY_OVERLONG = 0.05
"""Share of answers without an end that is worth a warning."""

_SHARDS_AT_ONCE = 8
"""Each waits for the store several times, and takes some MB meanwhile."""

_CARRIED = (
    *("question_id", "dataset", "kind", "image_uri", "image_sha256", "question", "answers"),
    *("grid_height", "grid_width", "image_width", "image_height"),
    *("pad_left", "pad_top", "canvas_width", "canvas_height"),
)
# Samples are labelled together if nothing about their maps' shapes differs.
_ALIKE = ("grid_height", "grid_width", "has_sink")
_PLACEMENT = ("image_width", "image_height", "canvas_width", "canvas_height")
_BOX = ("box_x0", "box_y0", "box_x1", "box_y1")
_COUNTS = ("num_foreground", "num_background", "num_ignore")
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
        labelled = frame.filter(is_ok).group_by(_ALIKE, maintain_order=True)
        parts = [_labelled(alike, settings) for _, alike in labelled]
        rows = pl.concat([_not_extracted(frame.filter(~is_ok)), *parts])
        return FrameShard(rows, _statistics(rows))

    def begin(recipe: Recipe) -> None:
        _warn_of_overlong_answers(manifest)
        run.on_start(recipe)

    begun = replace(run, on_start=begin)
    return run_stage(begun, recipe, make_shard, num_at_once=_SHARDS_AT_ONCE)


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


def _statistics(rows: pl.DataFrame) -> dict[str, int]:
    """How many rows of a shard have each status, and are of each dataset."""
    return {
        statistic(value): count
        for name, statistic in (("status", status_statistic), ("dataset", dataset_statistic))
        for value, count in rows[name].value_counts().iter_rows()
    }


def _labelled(frame: pl.DataFrame, settings: LabelSettings) -> pl.DataFrame:
    """Rows of samples on one grid."""
    first = frame.row(0, named=True)
    shape = (frame.height, first["grid_height"], first["grid_width"])
    made = make_pseudo_labels(
        _maps(frame, "grounding", shape),
        _maps(frame, "sink", shape) if first["has_sink"] else None,
        settings,
        frame.select(_PLACEMENT).to_numpy(),
    )
    boxes = pl.DataFrame(made.boxes, schema=_BOX)
    return frame.select(
        *_CARRIED,
        pl.Series("labels", made.labels.reshape(frame.height, -1)).arr.to_list(),
        *boxes.select(pl.when(pl.col("box_x0") >= 0).then(pl.col(_BOX))),
        *(pl.Series(name, getattr(made, name)) for name in (*_COUNTS, "max_attention")),
        pl.Series("status", [status.value for status in made.status]),
        pl.Series("reason", [REASONS[status] for status in made.status]),
    )


def _maps(frame: pl.DataFrame, column: str, shape: tuple[int, int, int]) -> np.ndarray:
    return frame[column].explode(empty_as_null=False).to_numpy().reshape(shape)


def _not_extracted(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows of samples without attention."""
    return frame.select(
        *_CARRIED,
        pl.lit([], pl.List(pl.Int8)).alias("labels"),
        *(pl.lit(None, pl.Int32).alias(name) for name in _BOX),
        *(pl.lit(0, pl.Int32).alias(name) for name in _COUNTS),
        max_attention=pl.lit(0.0, pl.Float32),
        status=pl.lit(LabelStatus.NOT_EXTRACTED.value),
        reason=pl.format("{}: {}", pl.col("status").cast(pl.String), "reason"),
    )
