"""RoI probability map -> regions: smooth, threshold, split, filter, grow, measure in pixels.

Boxes on the grid are half-open ``GridBox``. Components are 8-connected. Two orders exist:
strongest first (ours), and row by row of each component's first cell (the reference's preset, which
keeps or drops all regions and so never ranks them).
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_contracts.label_settings import RegionSettings
from sdrpn_core.filters import Array, as_float_tensor, gaussian_blur_3x3
from sdrpn_core.geometry import BoxXYXY, GridBox, GridShape, Letterbox

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.int8)


@dataclass(frozen=True)
class Region:
    """One place to look closer, in source pixels, margins included."""

    box: BoxXYXY
    """What to crop."""
    shown: tuple[BoxXYXY, ...] | None = None
    """Parts of it that are worth showing, which may overlap; None for all of it."""

    @property
    def visible(self) -> tuple[BoxXYXY, ...]:
        """What is worth showing, also of a region that is shown whole."""
        return (self.box,) if self.shown is None else self.shown

    @classmethod
    def of_cells(
        cls,
        cells: GridBox,
        mask: NDArray[np.bool_] | None,
        letterbox: Letterbox,
        grid: GridShape,
        margin: float,
    ) -> Self:
        """Region of a map.

        Args:
            cells: its box.
            mask: (h, w) of those cells: worth showing. None for all, and none for all too.
            letterbox: where the image lies on the canvas.
            grid: of the map.
            margin: around the box, and around the cells worth showing, in cells.
        """
        box = letterbox.cells_to_image(cells, grid, margin)
        if mask is None or not mask.any():
            return cls(box)
        runs = _runs(mask, cells.x0, cells.y0)
        return cls(box, tuple(letterbox.cells_to_image(run, grid, margin) for run in runs))


@dataclass(frozen=True)
class SmoothedMap:
    """A RoI map as thresholds apply to it, and where the image lies on it."""

    scores: NDArray[Any]
    """(h, w) after the blur."""
    content: NDArray[np.bool_]
    """(h, w) cells that show the image."""
    letterbox: Letterbox

    @classmethod
    def of(cls, probability: Array, settings: RegionSettings, letterbox: Letterbox) -> Self:
        """Smooth an (h, w) map of RoI probabilities.

        Raises:
            ValueError: if the map is not (h, w), or not finite.
        """
        scores = smoothed(probability, settings)
        return cls(scores, letterbox.content_mask(GridShape(*scores.shape)), letterbox)

    def regions(self, threshold: float, settings: RegionSettings) -> tuple[Region, ...]:
        """As of ``crop_regions``; the blur was chosen before, that of ``settings`` is not read."""
        scores, content = self.scores, self.content
        cutoff = _cutoff(scores, threshold, settings, content)
        ratio = settings.mask_threshold_ratio
        shown = None if ratio is None else (scores > ratio * cutoff) & content
        regions = (
            Region.of_cells(
                cells,
                None if shown is None else shown[cells.y0 : cells.y1, cells.x0 : cells.x1],
                self.letterbox,
                GridShape(*scores.shape),
                settings.margin_cells,
            )
            for cells in _proposed(scores, cutoff, settings, content)
        )
        return tuple(region for region in regions if region.box.area > 0)


@dataclass(frozen=True)
class _Component:
    box: GridBox
    num_cells: int
    peak: float


def crop_regions(
    probability: Array, threshold: float, settings: RegionSettings, letterbox: Letterbox
) -> tuple[Region, ...]:
    """What ``propose_regions`` found, in source pixels, and what of it is worth showing.

    Args:
        probability: (h, w) RoI probabilities in [0, 1].
        threshold: as of ``propose_regions``.
        settings: see ``RegionSettings.preset``.
        letterbox: where the image lies on the canvas; boxes lie inside the image.
    """
    return SmoothedMap.of(probability, settings, letterbox).regions(threshold, settings)


def propose_regions(
    probability: Array,
    threshold: float,
    settings: RegionSettings,
    content_mask: NDArray[np.bool_] | None = None,
) -> list[GridBox]:
    """Boxes worth a closer look; an empty list means that the whole image will do.

    Args:
        probability: (h, w) RoI probabilities in [0, 1].
        threshold: cells above it, after the blur, belong to a region; a share of the blurred map's
            maximum in the image with ``settings.threshold_is_peak_ratio``.
        settings: see ``RegionSettings.preset``.
        content_mask: (h, w) cells that show the image; regions are looked for only there, so that
            a box is never all padding. None for no padding.

    Returns:
        At most ``max_regions`` half-open boxes, ordered by the smoothed peak inside, strongest
        first, ties by row and column; those that are too large are then left out, and no weaker
        one takes their place. With ``drop_all_above_max_regions`` they are in row order of
        each region's first cell, and none at all if there are more. Boxes have at least one cell,
        with the exception of ``reference_growth`` on grids of a single row or column.

    Raises:
        ValueError: if the map is not (h, w), or not finite.
    """
    scores = smoothed(probability, settings)
    grid = GridShape(*scores.shape)
    content = np.ones(grid, dtype=np.bool_) if content_mask is None else content_mask
    return _proposed(scores, _cutoff(scores, threshold, settings, content), settings, content)


def _proposed(
    scores: NDArray[Any], cutoff: float, settings: RegionSettings, content: NDArray[np.bool_]
) -> list[GridBox]:
    """``propose_regions`` of a smoothed map."""
    components = _connected_components((scores > cutoff) & content, scores)
    components = [part for part in components if _is_kept(part, settings)]
    if settings.single_box:
        components = _merged(components)
    inside = np.where(content, scores, 0.0)
    regions = _selected([_grown(part, inside, settings) for part in components], settings)
    return [box for box in regions if _zooms(box, content, settings)]


def smoothed(probability: Array, settings: RegionSettings) -> NDArray[Any]:
    """The (h, w) map that thresholds apply to.

    Raises:
        ValueError: if the map is not (h, w), or not finite.
    """
    tensor = as_float_tensor(probability)
    if tensor.ndim != 2 or not tensor.isfinite().all():
        raise ValueError(f"probability must be finite and (h, w), got {tuple(tensor.shape)}")
    if settings.blur_sigma is not None:
        tensor = gaussian_blur_3x3(tensor, settings.blur_sigma)
    return tensor.cpu().numpy()


def _cutoff(
    scores: NDArray[Any], threshold: float, settings: RegionSettings, content: NDArray[np.bool_]
) -> float:
    """Score that the cells of a region are above."""
    peak: float = scores[content].max(initial=0.0)
    return threshold * peak if settings.threshold_is_peak_ratio else threshold


def _connected_components(mask: NDArray[np.bool_], scores: NDArray[Any]) -> list[_Component]:
    """8-connected components in row order of their first cell."""
    labelled, num_components = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
    counts = np.bincount(labelled.ravel(), minlength=num_components + 1)
    peaks = np.full(num_components + 1, -np.inf, dtype=scores.dtype)
    np.maximum.at(peaks, labelled.ravel(), scores.ravel())
    return [
        _Component(
            box=GridBox(columns.start, rows.start, columns.stop, rows.stop),
            num_cells=int(counts[index]),
            peak=float(peaks[index]),
        )
        for index, (rows, columns) in enumerate(ndimage.find_objects(labelled), start=1)
    ]


def _merged(components: list[_Component]) -> list[_Component]:
    """One component that spans them all."""
    if not components:
        return []
    x0, y0 = (min(part.box[axis] for part in components) for axis in (0, 1))
    x1, y1 = (max(part.box[axis] for part in components) for axis in (2, 3))
    return [
        _Component(
            box=GridBox(x0, y0, x1, y1),
            num_cells=sum(part.num_cells for part in components),
            peak=max(part.peak for part in components),
        )
    ]


def _is_kept(component: _Component, settings: RegionSettings) -> bool:
    """Whether the component has an allowed number of cells."""
    largest = settings.max_component_cells
    return component.num_cells >= settings.min_component_cells and (
        largest is None or component.num_cells <= largest
    )


def _zooms(box: GridBox, content: NDArray[np.bool_], settings: RegionSettings) -> bool:
    """Whether the box is small enough for its crop to show more than the whole image does."""
    ratio = settings.max_box_area_ratio
    if ratio is None:
        return True
    num_covered = np.count_nonzero(content[box.y0 : box.y1, box.x0 : box.x1])
    return bool(num_covered <= ratio * np.count_nonzero(content))


def _grown(component: _Component, scores: NDArray[Any], settings: RegionSettings) -> _Component:
    """The component with its box grown to the least side length, where that applies."""
    limit = settings.small_component_cells
    if limit is not None and component.num_cells >= limit:
        return component
    (x0, y0, x1, y1), least = component.box, settings.min_box_side
    if settings.reference_growth:
        height, width = scores.shape
        x0, x1 = _grown_as_reference(x0, x1, least, width)
        y0, y1 = _grown_as_reference(y0, y1, least, height)
    else:
        rows, columns = scores[:, x0:x1].sum(axis=1), scores[y0:y1].sum(axis=0)
        x0, x1 = _grown_towards_score(x0, x1, least, columns)
        y0, y1 = _grown_towards_score(y0, y1, least, rows)
    return _Component(GridBox(x0, y0, x1, y1), component.num_cells, component.peak)


def _grown_towards_score(
    start: int, stop: int, min_length: int, profile: NDArray[Any]
) -> tuple[int, int]:
    """Grow [start, stop) evenly to both sides, an odd cell to the side with the higher score.

    Equal scores grow towards the end. What falls outside [0, len(profile)) is shifted into it.
    """
    length = min(max(stop - start, min_length), len(profile))
    each_side, odd = divmod(length - (stop - start), 2)
    start, stop = start - each_side, stop + each_side
    before = profile[start - 1] if start > 0 else -np.inf
    after = profile[stop] if stop < len(profile) else -np.inf
    # By more than the rounding of sums, which depends on the order they are taken in.
    start -= odd if before > after + 1e-6 * abs(after) else 0
    start = min(max(start, 0), len(profile) - length)
    return start, start + length


def _grown_as_reference(start: int, stop: int, min_length: int, limit: int) -> tuple[int, int]:
    """Grow as the reference does: half-open ends treated as inclusive, clamped to limit - 1."""
    centre = (start + stop) / 2
    length = max(min_length, stop - start + 1)
    return max(0, int(centre - length / 2)), min(limit - 1, int(centre + length / 2))


def _selected(regions: list[_Component], settings: RegionSettings) -> list[GridBox]:
    """The boxes that are returned, in the order they are returned in."""
    if settings.drop_all_above_max_regions:
        return [] if len(regions) > settings.max_regions else [region.box for region in regions]
    ranked = sorted(regions, key=lambda region: (-region.peak, region.box.y0, region.box.x0))
    return [region.box for region in ranked[: settings.max_regions]]


def _runs(mask: NDArray[np.bool_], x0: int, y0: int) -> tuple[GridBox, ...]:
    """The true cells of a mask whose corner is at (x0, y0), row by row in boxes of one row."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = mask
    edges = np.diff(padded, axis=1)
    starts, stops = np.argwhere(edges == 1), np.argwhere(edges == -1)
    return tuple(
        GridBox(x0 + int(start), y0 + int(row), x0 + int(stop), y0 + int(row) + 1)
        for (row, start), (_, stop) in zip(starts, stops, strict=True)
    )
