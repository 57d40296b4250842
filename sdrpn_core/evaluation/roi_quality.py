"""How well labels, score maps and boxes find the true region. Pure NumPy.

True boxes are in source-image pixels, as annotators give them; masks live on the model's grid.
A cell is inside a true box by the *centre rule*: along each axis, the cells whose centre lies in
the box; where there is none (the box is thinner than a cell and between two centres), the cells
that the box covers most. So every box that meets the canvas has at least one cell, and a thin line
of text has the one row of cells that shows most of it. The ``area_`` measures need no such rule:
they weight each cell by the share of it that the boxes cover.

Ratios with an empty denominator are NaN; summaries leave them out and count them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from sdrpn_core.geometry import SMALLEST_COVERAGE, BoxXYXY, GridShape, Letterbox

NAN = float("nan")


def true_cells(
    true_boxes: Sequence[BoxXYXY], letterbox: Letterbox, grid: GridShape
) -> NDArray[np.bool_]:
    """Cells inside any of the boxes by the centre rule, (h, w).

    Args:
        true_boxes: half-open, in source pixels.
        letterbox: where the image lies on the canvas.
        grid: of the mask to make.
    """
    cell_width, cell_height = letterbox.cell_size(grid)
    mask = np.zeros(grid, dtype=np.bool_)
    for box in map(letterbox.to_canvas, true_boxes):
        columns = _cells_of_interval(box.x0 / cell_width, box.x1 / cell_width, grid.width)
        rows = _cells_of_interval(box.y0 / cell_height, box.y1 / cell_height, grid.height)
        mask |= rows[:, None] & columns[None, :]
    return mask


def true_coverage(
    true_boxes: Sequence[BoxXYXY], letterbox: Letterbox, grid: GridShape
) -> NDArray[np.float64]:
    """Share of each cell that the union of the boxes covers, (h, w) in [0, 1]; exact."""
    coverage = np.zeros(grid, dtype=np.float64)
    for box in _disjoint(true_boxes):
        coverage += letterbox.coverage(box, grid)
    return coverage


@dataclass(frozen=True)
class MaskQuality:
    """Agreement of a cell mask with the true boxes; add them up for a data set (micro average)."""

    num_samples: int
    num_selected: int
    """Cells in the mask."""
    num_true: int
    """Cells inside the true boxes."""
    num_hits: int
    """Cells of the mask that are inside the true boxes."""
    num_touching: int
    """Cells of the mask that show any part of the true boxes."""

    @property
    def touch_precision(self) -> float:
        """Share of the mask's cells that show any part of the true boxes.

        The centre rule would be too strict: on a coarse grid a small object lies across cells whose
        centres are outside, and looking there is looking at the object.
        """
        return _ratio(self.num_touching, self.num_selected)

    @property
    def centre_precision(self) -> float:
        """Share of the mask's cells that are inside by the centre rule; the strictest reading."""
        return _ratio(self.num_hits, self.num_selected)

    @property
    def recall(self) -> float:
        """Share of the true cells that are in the mask."""
        return _ratio(self.num_hits, self.num_true)

    def __add__(self, other: "MaskQuality") -> "MaskQuality":
        """Quality over both sets of samples together."""
        return MaskQuality(
            num_samples=self.num_samples + other.num_samples,
            num_selected=self.num_selected + other.num_selected,
            num_true=self.num_true + other.num_true,
            num_hits=self.num_hits + other.num_hits,
            num_touching=self.num_touching + other.num_touching,
        )


EMPTY_MASK_QUALITY = MaskQuality(0, 0, 0, 0, 0)
"""Start value for adding up."""


def mask_quality(
    mask: NDArray[np.bool_], true_boxes: Sequence[BoxXYXY], letterbox: Letterbox
) -> MaskQuality:
    """Compare a mask with the true boxes.

    Foreground should have high precision and recall; for a *background* mask, ``centre_precision``
    is the share of false background and should be near 0. Cells of pure padding are not counted, so
    free background does not flatter.

    Args:
        mask: (h, w) foreground or background cells of a label, or a thresholded map.
        true_boxes: half-open, in source pixels.
        letterbox: where the image lies on the canvas.
    """
    grid = GridShape(*mask.shape)
    inside = true_cells(true_boxes, letterbox, grid)
    coverage = true_coverage(true_boxes, letterbox, grid)
    counted = mask & (letterbox.content_mask(grid) | inside)
    return MaskQuality(
        num_samples=1,
        num_selected=int(counted.sum()),
        num_true=int(inside.sum()),
        num_hits=int((counted & inside).sum()),
        num_touching=int((counted & (coverage > SMALLEST_COVERAGE)).sum()),
    )


def points_inside(
    scores: NDArray[np.floating], true_boxes: Sequence[BoxXYXY], letterbox: Letterbox
) -> bool:
    """Pointing game: whether the strongest cell is inside by the centre rule.

    A constant map points nowhere and misses; so does one with a tie that reaches outside.

    Args:
        scores: (h, w) attention, logits or probabilities; finite.
        true_boxes: half-open, in source pixels.
        letterbox: where the image lies on the canvas.
    """
    peaks = scores == scores.max()
    inside = true_cells(true_boxes, letterbox, GridShape(*scores.shape))
    return bool(not peaks.all() and inside[peaks].all())


@dataclass(frozen=True)
class BoxQuality:
    """Agreement of one document's proposed boxes with its true boxes."""

    coverage: float
    """Share of the true boxes' area inside the proposed ones."""
    iou: float
    """Intersection over union of the two areas."""


def box_quality(
    proposed: Sequence[BoxXYXY], true_boxes: Sequence[BoxXYXY], image_size: tuple[int, int]
) -> BoxQuality:
    """Compare proposed with true boxes, each as the union of its boxes clipped to the image.

    Args:
        proposed: half-open, in source pixels; may be empty (the whole image was used).
        true_boxes: half-open, in source pixels; at least one with an area.
        image_size: (width, height).

    Raises:
        ValueError: if the true boxes have no area inside the image.
    """
    image = BoxXYXY.whole(image_size)
    found = _disjoint([box.intersection(image) for box in proposed])
    wanted = _disjoint([box.intersection(image) for box in true_boxes])
    true_area = sum(box.area for box in wanted)
    if true_area <= 0:
        raise ValueError(f"true boxes {list(true_boxes)} have no area in an image of {image_size}")
    found_area = sum(box.area for box in found)
    overlap = sum(a.intersection(b).area for a, b in product(found, wanted))
    return BoxQuality(
        coverage=overlap / true_area,
        iou=overlap / (true_area + found_area - overlap),
    )


def _cells_of_interval(start: float, stop: float, num_cells: int) -> NDArray[np.bool_]:
    """Cells [i, i + 1) whose centre is in [start, stop), else those that it covers most."""
    edges = np.arange(num_cells, dtype=np.float64)
    has_centre = (edges + 0.5 >= start) & (edges + 0.5 < stop)
    if has_centre.any():
        return has_centre
    overlap = np.minimum(edges + 1, stop) - np.maximum(edges, start)
    most = float(overlap.max())
    if most <= 0:
        return np.zeros(num_cells, dtype=np.bool_)
    most_covered: NDArray[np.bool_] = overlap >= most - 1e-9
    return most_covered


def _disjoint(boxes: Sequence[BoxXYXY]) -> list[BoxXYXY]:
    """The union of boxes as boxes that do not overlap: the lattice of all their edges."""
    solid = [box for box in boxes if box.area > 0]
    xs = sorted({x for box in solid for x in (box.x0, box.x1)})
    ys = sorted({y for box in solid for y in (box.y0, box.y1)})
    tiles = (BoxXYXY(x0, y0, x1, y1) for (y0, y1), (x0, x1) in product(pairwise(ys), pairwise(xs)))
    return [tile for tile in tiles if any(box.intersection(tile) == tile for box in solid)]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else NAN
