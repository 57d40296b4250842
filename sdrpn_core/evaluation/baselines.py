"""The other ways of choosing a crop that evaluation compares with: ViCrop, random, raw attention.

ViCrop (``mllms_know``) divides the question's attention by that of a general description prompt and
slides square windows of several sizes over the result. Differences from its code, each a defect
there: ratio maps have a floor instead of dividing by 0; windows have at least one cell (it divides
by 0 when a cell is larger than the crop); windows are placed on the letterboxed canvas and never
look at padding; boxes keep fractions of a pixel.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_contracts.label_settings import RegionSettings
from sdrpn_core.geometry import BoxXYXY, GridShape, Letterbox
from sdrpn_core.regions import Region, crop_regions

VICROP_SIZE_RATIOS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
"""Window sides tried, as multiples of the base crop side."""

_RELATIVE_FLOOR = 1e-3
"""Added to the general attention, as a share of its mean: bounds what an unattended cell gains."""


def relative_attention(
    question_map: NDArray[np.floating], general_map: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Attention that is due to the question: its map over that of a general prompt.

    Args:
        question_map: (h, w) attention of the last prompt token, question asked.
        general_map: (h, w) the same for a prompt that asks for a general description.

    Returns:
        (h, w) finite and not negative; unchanged when either map is scaled, up to a factor.
    """
    question = question_map.astype(np.float64)
    general = general_map.astype(np.float64)
    floor = float(_RELATIVE_FLOOR * general.mean())
    return question / (general + floor) if floor > 0 else question


@dataclass(frozen=True)
class _Window:
    """The best place of one window size."""

    side: float
    """Side of the crop in source pixels."""
    centre: tuple[float, float]
    """(x, y) in cells."""
    sharpness: float


def vicrop_box(
    attention: NDArray[np.floating], letterbox: Letterbox, base_side: float
) -> BoxXYXY | None:
    """ViCrop's crop: a square around the window that stands out most from its neighbours.

    For each size ratio the window with the largest sum is found; of those, the one whose sum most
    exceeds the mean of its four neighbours (one cell aside), per cell, is taken.

    Args:
        attention: (h, w) not negative, for instance of ``relative_attention``.
        letterbox: where the image lies on the canvas.
        base_side: side of the smallest crop in source pixels (ViCrop: the model's input side).

    Returns:
        A half-open box in source pixels inside the image; None where the smallest window already
        holds the whole grid (ViCrop then crops the whole image).
    """
    grid = GridShape(*attention.shape)
    visible = np.where(letterbox.content_mask(grid), attention, 0.0)
    sums = _summed_area_table(visible)
    candidates = [_best_window(sums, letterbox, base_side * r) for r in VICROP_SIZE_RATIOS]
    if candidates[0] is None:
        return None
    windows = [window for window in candidates if window is not None]
    best = max(windows, key=lambda window: window.sharpness)
    cell_width, cell_height = letterbox.cell_size(grid)
    centre_x = best.centre[0] * cell_width - letterbox.pad_left
    centre_y = best.centre[1] * cell_height - letterbox.pad_top
    return centred_box((centre_x, centre_y), (best.side, best.side), letterbox.image_size)


def centred_box(
    centre: tuple[float, float], size: tuple[float, float], image_size: tuple[int, int]
) -> BoxXYXY:
    """Box of ``size`` about ``centre``, shifted into the image and no larger than it.

    Args:
        centre: (x, y) in source pixels.
        size: (width, height) in source pixels.
        image_size: (width, height).
    """
    starts, stops = [], []
    for middle, length, limit in zip(centre, size, image_size, strict=True):
        length = min(length, float(limit))
        start = min(max(middle - length / 2, 0.0), limit - length)
        starts.append(start)
        stops.append(start + length)
    return BoxXYXY(starts[0], starts[1], stops[0], stops[1])


def random_crop_box(
    image_size: tuple[int, int], crop_size: tuple[float, float], question_id: str
) -> BoxXYXY:
    """A box of the given size at a uniformly random place, the same for a question every time.

    Args:
        image_size: (width, height) in pixels.
        crop_size: (width, height) of the crop that it is compared with; cut to the image.
        question_id: seeds the place, so it depends on neither order nor batch.
    """
    seed = int.from_bytes(hashlib.sha256(question_id.encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    width, height = (min(side, limit) for side, limit in zip(crop_size, image_size, strict=True))
    x0 = float(rng.uniform(0.0, image_size[0] - width))
    y0 = float(rng.uniform(0.0, image_size[1] - height))
    return BoxXYXY(x0, y0, x0 + width, y0 + height)


def raw_attention_regions(
    attention: NDArray[np.floating],
    threshold: float,
    settings: RegionSettings,
    letterbox: Letterbox,
) -> tuple[Region, ...]:
    """Regions of the model's own attention, as if it were a RoI map: no RPN, no denoising.

    Args:
        attention: (h, w) not negative; divided by its maximum, to lie in [0, 1].
        threshold: of ``crop_regions``.
        settings: of ``crop_regions``.
        letterbox: where the image lies on the canvas; the maximum is taken there.
    """
    visible = np.where(letterbox.content_mask(GridShape(*attention.shape)), attention, 0.0)
    peak = visible.max()
    if not peak > 0:
        return ()
    return crop_regions(visible / peak, threshold, settings, letterbox)


def _best_window(sums: NDArray[np.float64], letterbox: Letterbox, side: float) -> _Window | None:
    """The strongest window of one size; None if it holds the whole grid and has no neighbours."""
    grid = GridShape(sums.shape[0] - 1, sums.shape[1] - 1)
    shape = _window_shape(letterbox, grid, side)
    if shape == grid:
        return None
    window_sums = _window_sums(sums, shape)
    # ViCrop scans columns first, so that of equal windows the leftmost wins.
    x, y = np.unravel_index(int(window_sums.T.argmax()), window_sums.T.shape)
    best = window_sums[y, x]
    neighbours = [
        window_sums[row, column]
        for row, column in ((y, x - 1), (y, x + 1), (y - 1, x), (y + 1, x))
        if 0 <= row < window_sums.shape[0] and 0 <= column < window_sums.shape[1]
    ]
    return _Window(
        side=side,
        centre=(float(x + shape.width / 2), float(y + shape.height / 2)),
        sharpness=float((best - np.mean(neighbours)) / shape.num_cells),
    )


def _window_shape(letterbox: Letterbox, grid: GridShape, side: float) -> GridShape:
    """Whole cells that fit into a square of ``side`` source pixels; at least one, at most all."""
    cell_width, cell_height = letterbox.cell_size(grid)
    return GridShape(
        height=min(max(int(side / cell_height), 1), grid.height),
        width=min(max(int(side / cell_width), 1), grid.width),
    )


def _summed_area_table(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """(h + 1, w + 1): entry (y, x) is the sum of all values above and left of it."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    table[1:, 1:] = values.astype(np.float64).cumsum(axis=0).cumsum(axis=1)
    return table


def _window_sums(table: NDArray[np.float64], shape: GridShape) -> NDArray[np.float64]:
    """Sum inside the window at every place it fits, (h - wh + 1, w - ww + 1)."""
    height, width = shape
    result: NDArray[np.float64] = (
        table[height:, width:]
        - table[:-height, width:]
        - table[height:, :-width]
        + table[:-height, :-width]
    )
    return result
