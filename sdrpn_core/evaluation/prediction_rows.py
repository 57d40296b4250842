"""What the rows of ``prediction.v4`` hold, as values to compute with."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from data_contracts.label_settings import RegionSettings
from sdrpn_core.geometry import BoxXYXY, GridShape, Letterbox
from sdrpn_core.regions import Region, crop_regions

Row = Mapping[str, Any]

_MAPS = ("roi_map", "sink_map")


def rows_with_judged_maps(predictions: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows in their order, maps as arrays; without a true box nothing is asked of a map.

    As lists of numbers all maps of a benchmark would take gigabytes.
    """
    rows = predictions.drop(_MAPS).to_dicts()
    is_judged = pl.col("true_box").is_not_null()
    for name, maps in predictions.select(pl.when(is_judged).then(pl.col(_MAPS))).to_dict().items():
        for row, values in zip(rows, maps, strict=True):
            row[name] = None if values is None else values.to_numpy()
    return rows


def letterbox_of(row: Row) -> Letterbox:
    """Letterbox of a row that carries one."""
    return Letterbox(
        image_width=row["image_width"],
        image_height=row["image_height"],
        pad_left=row["pad_left"],
        pad_top=row["pad_top"],
        canvas_width=row["canvas_width"],
        canvas_height=row["canvas_height"],
    )


def grid_of(row: Row) -> GridShape:
    """Grid of a row that carries one."""
    return GridShape(row["grid_height"], row["grid_width"])


def map_of(row: Row, column: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A stored map as (h, w) float32."""
    return np.asarray(row[column], dtype=np.float32).reshape(grid_of(row))


def crops_of(row: Row) -> list[BoxXYXY]:
    """Crops of a prediction row."""
    return [BoxXYXY(*box) for box in row["boxes"]]


def regions_of(row: Row, threshold: float, settings: RegionSettings) -> tuple[Region, ...]:
    """What SD-RPN showed of a prediction row's image: its crops, and of each what was not masked.

    Where the map gives other crops, it was answered with other settings: then all of them is shown.

    Args:
        row: of a method that zooms where the RPN says.
        threshold: that it was answered with.
        settings: that it was answered with.
    """
    boxes = crops_of(row)
    if boxes and row["roi_map"] is not None:
        found = crop_regions(map_of(row, "roi_map"), threshold, settings, letterbox_of(row))
        proposed = np.array([region.box for region in found], dtype=np.float32)
        if np.array_equal(proposed, np.array(boxes, dtype=np.float32)):  # as rows store them
            return found
    return tuple(map(Region, boxes))


def true_boxes_of(row: Row) -> list[BoxXYXY]:
    """True boxes of a prediction row; none if nobody knows."""
    return [] if row["true_box"] is None else [BoxXYXY(*row["true_box"])]
