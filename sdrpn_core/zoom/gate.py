"""Whether a closer look is worth its cost, and where to look.

The second stage is skipped when a crop would not help: nothing in the RoI map stands out, the
region is nearly the whole image, or the model has seen every pixel of the image already.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_contracts.enums import ZoomDecision
from data_contracts.label_settings import RegionSettings
from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.regions import Region, SmoothedMap


@dataclass(frozen=True)
class Zoom:
    """Where to look closer, or why not to."""

    regions: tuple[Region, ...]
    """Empty unless zoomed."""
    decision: ZoomDecision


def decide_zoom(
    roi_map: NDArray[np.float32],
    threshold: float,
    settings: RegionSettings,
    letterbox: Letterbox,
    pixels_seen: tuple[int, int] | None = None,
) -> Zoom:
    """Regions of one RoI map, if a crop of them would show more than the image did.

    Args:
        roi_map: (h, w) probabilities.
        threshold: of ``crop_regions``.
        settings: regions, and the rules for skipping.
        letterbox: where the image lies on the canvas.
        pixels_seen: (width, height) at which the model got the canvas; None if not known, which
            leaves that rule out.
    """
    grid = GridShape(*roi_map.shape)
    if pixels_seen is not None and _is_fully_seen(letterbox, pixels_seen, grid, settings):
        return Zoom((), ZoomDecision.IMAGE_FULLY_SEEN)
    smoothed = SmoothedMap.of(roi_map, settings, letterbox)
    if not _stands_out(smoothed, settings):
        return Zoom((), ZoomDecision.NO_CONFIDENT_REGION)
    regions = smoothed.regions(threshold, settings)
    if regions:
        return Zoom(regions, ZoomDecision.ZOOMED)
    any_size = settings.model_copy(update={"max_box_area_ratio": None})
    is_too_large = bool(smoothed.regions(threshold, any_size))
    return Zoom(
        (),
        ZoomDecision.REGION_TOO_LARGE if is_too_large else ZoomDecision.NO_CONFIDENT_REGION,
    )


def _stands_out(smoothed: SmoothedMap, settings: RegionSettings) -> bool:
    """Whether the map's peak in the image is probable, and well above the map's mean."""
    scores = smoothed.scores[smoothed.content]
    peak, mean = float(scores.max(initial=0.0)), float(scores.mean()) if scores.size else 0.0
    least, least_ratio = settings.min_peak_probability, settings.min_peak_to_mean
    return (least is None or peak >= least) and (least_ratio is None or peak >= least_ratio * mean)


def _is_fully_seen(
    letterbox: Letterbox, pixels_seen: tuple[int, int], grid: GridShape, settings: RegionSettings
) -> bool:
    """Whether the model got as many pixels as the canvas has, and no side squeezed.

    A canvas that is stretched to a square may keep its pixels in number and still lose its print.
    A grid of whole cells takes up to one from a side, of a canvas of any shape.
    """
    limit = settings.max_seen_ratio
    if limit is None:
        return False
    (width, height), canvas = pixels_seen, (letterbox.canvas_width, letterbox.canvas_height)
    seen_to_a_cell = (width + width / grid.width, height + height / grid.height)
    return width * height >= limit * canvas[0] * canvas[1] and all(
        seen**2 >= limit * side**2 for seen, side in zip(seen_to_a_cell, canvas, strict=True)
    )
