"""Whether a closer look is worth its cost, and where to look.

The second stage is skipped when a crop would not help: nothing in the RoI map stands out, the
region is nearly the whole image, or the model has seen every pixel of the image already.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_contracts.enums import ZoomDecision
from data_contracts.label_settings import RegionSettings
from sdrpn_core.geometry import Letterbox
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
    if pixels_seen is not None and _is_fully_seen(letterbox, pixels_seen, settings):
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
    letterbox: Letterbox, pixels_seen: tuple[int, int], settings: RegionSettings
) -> bool:
    limit = settings.max_seen_ratio
    num_seen = pixels_seen[0] * pixels_seen[1]
    num_pixels = letterbox.canvas_width * letterbox.canvas_height
    return limit is not None and num_seen >= limit * num_pixels
