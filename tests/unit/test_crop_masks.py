"""Which tokens of a crop are shown: against plain loops, and by symmetry."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_contracts.label_settings import REGION_PRESETS, RegionSettings
from sdrpn_core.geometry import BoxXYXY, GridBox, GridShape, Letterbox
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.regions import Region, crop_regions
from sdrpn_core.zoom.crop_masks import shown_cells

CELL = 20
"""Pixels per cell of the images here."""
IMAGE = Letterbox.square((10 * CELL, 10 * CELL))
MASKS = hnp.arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 6)))
CROP_GRIDS = st.tuples(st.integers(1, 12), st.integers(1, 12))


def region_at(mask: np.ndarray, corner: tuple[int, int] = (2, 3), margin: float = 0.0) -> Region:
    """On ``IMAGE``; only the mask has a margin, the box has none."""
    (height, width), (x0, y0) = mask.shape, corner
    cells = GridBox(x0, y0, x0 + width, y0 + height)
    parts = Region.of_cells(cells, mask, IMAGE, GridShape(10, 10), margin).shown
    return Region(BoxXYXY(*(float(CELL * edge) for edge in cells)), parts)


def shown(mask: np.ndarray, crop_grid: tuple[int, int], **place: Any) -> np.ndarray:
    """(h, w) of a crop that its own canvas holds without padding."""
    height, width = mask.shape
    letterbox = Letterbox.identity((width * CELL, height * CELL))
    return shown_cells(letterbox, GridShape(*crop_grid), region_at(mask, **place), IMAGE.image_size)


def by_loops(mask: np.ndarray, crop_grid: tuple[int, int], margin: float) -> np.ndarray:
    """Every token against every cell: whether their rectangles overlap."""
    (height, width), (rows, columns) = mask.shape, crop_grid
    found = np.zeros(crop_grid, np.bool_)
    for row, column, y, x in np.ndindex(rows, columns, height, width):
        if mask[y, x]:
            down = min((row + 1) * height / rows, y + 1 + margin) - max(
                row * height / rows, y - margin
            )
            across = min((column + 1) * width / columns, x + 1 + margin) - max(
                column * width / columns, x - margin
            )
            found[row, column] |= min(down, across) > 1e-5
    return found


@settings(deadline=None)
@given(MASKS, CROP_GRIDS, st.sampled_from([0.0, 0.3, 1.1]))
def test_shown_tokens_touch_the_region_or_its_margin(
    mask: np.ndarray, crop_grid: tuple[int, int], margin: float
) -> None:
    wanted = by_loops(mask, crop_grid, margin)
    found = shown(mask, crop_grid, margin=margin)
    np.testing.assert_array_equal(found, wanted if wanted.any() else True)


@settings(deadline=None)
@given(MASKS, CROP_GRIDS)
def test_a_transposed_mask_shows_transposed_tokens(
    mask: np.ndarray, crop_grid: tuple[int, int]
) -> None:
    turned = shown(mask.T, crop_grid[::-1], corner=(3, 2))
    np.testing.assert_array_equal(turned, shown(mask, crop_grid).T)


def test_the_margin_of_a_box_is_shown_where_the_region_reaches_its_edge() -> None:
    """Half a cell around 2 x 2 cells, of which the right ones are the region; 12 tokens a side."""
    mask = np.array([[False, True], [False, True]])
    region = Region.of_cells(GridBox(2, 3, 4, 5), mask, IMAGE, GridShape(10, 10), margin=0.5)
    assert region.box == (1.5 * CELL, 2.5 * CELL, 4.5 * CELL, 5.5 * CELL)
    letterbox = Letterbox.identity((3 * CELL, 3 * CELL))
    found = shown_cells(letterbox, GridShape(12, 12), region, IMAGE.image_size)
    np.testing.assert_array_equal(found, np.repeat([[False] * 4 + [True] * 8], 12, axis=0))


def test_a_letterboxed_image_and_crop_are_both_accounted_for() -> None:
    """An image of 10 x 4 cells in 10 x 10; a crop of 4 x 2 cells in a square of 8 x 8 tokens."""
    mask = np.array([[True, True, False, False], [True, True, False, False]])
    image = Letterbox.square((200, 80))
    region = Region.of_cells(GridBox(2, 4, 6, 6), mask, image, GridShape(10, 10), margin=0.0)
    assert region.box == (40, 20, 120, 60)
    found = shown_cells(Letterbox.square((80, 40)), GridShape(8, 8), region, image.image_size)
    wanted = np.zeros((8, 8), np.bool_)
    wanted[2:6, :4] = True
    np.testing.assert_array_equal(found, wanted)


def test_tokens_are_counted_from_the_pixel_that_the_crop_begins_with() -> None:
    """A box from 40.6 to 44.6 is cropped from 40 to 45: a part from 43.2 on is in 43, 44 only."""
    box = BoxXYXY(40.6, 20.0, 44.6, 25.0)
    region = Region(box, (BoxXYXY(43.2, 20.0, 44.6, 25.0),))
    found = shown_cells(Letterbox.identity((5, 5)), GridShape(5, 5), region, (200, 80))
    np.testing.assert_array_equal(found, [[False] * 3 + [True] * 2] * 5)


def test_a_region_without_a_cell_worth_showing_is_shown_whole() -> None:
    """The reference's growth leaves out a peak in the last column."""
    cells = GridBox(2, 3, 4, 5)
    region = Region.of_cells(cells, np.zeros((2, 2), np.bool_), IMAGE, GridShape(10, 10), 0.0)
    assert region.visible == (region.box,)


def test_padding_is_not_shown_even_of_a_region_that_fills_its_box() -> None:
    box = BoxXYXY(40, 20, 120, 60)
    found = shown_cells(Letterbox.square((80, 40)), GridShape(8, 8), Region(box, (box,)), (200, 80))
    assert found.sum() == 32
    assert found[2:6].all()


@pytest.mark.parametrize("side", [1, 2, 3, 7, 25])
def test_no_part_of_a_region_is_hidden_however_coarse_the_crop(side: int) -> None:
    """A token whose middle lay beside the region was hidden with the part of it that it showed."""
    corner = np.zeros((5, 5), np.bool_)
    corner[0, 0] = True
    found = shown(corner, (side, side))
    reach = -(-side // 5)
    assert found[:reach, :reach].all()
    assert found.sum() == reach**2


def test_a_picture_too_thin_for_its_cells_is_shown_whole() -> None:
    """22000 x 1 pixels in one cell are less than a ten-thousandth of it: "at least one cell"."""
    letterbox = Letterbox.square((22000, 1))
    assert not letterbox.content_mask(GridShape(1, 1)).any()
    box = BoxXYXY(0, 0, 22000, 1)
    region = Region(box, (box,))
    assert shown_cells(letterbox, GridShape(1, 1), region, letterbox.image_size).all()


def test_without_masks_a_crop_stays_as_it_is() -> None:
    letterbox, region = Letterbox.square((40, 20)), Region(BoxXYXY(0, 0, 40, 40))
    assert shown_cells(letterbox, GridShape(4, 4), region, (80, 80)).all()


def test_the_mask_of_a_region_is_a_share_of_its_threshold() -> None:
    roi_map = np.zeros((8, 8), np.float32)
    roi_map[2:5, 2] = (0.5, 0.8, 0.3)
    how = RegionSettings(blur_sigma=None, min_box_side=3)
    letterbox = Letterbox.square((80, 80))
    (whole,) = crop_regions(roi_map, 0.4, how, letterbox)
    assert whole.visible == (whole.box,)
    for ratio, rows in ((1.0, [2, 3]), (0.5, [2, 3, 4])):
        masked = how.model_copy(update={"mask_threshold_ratio": ratio})
        (region,) = crop_regions(roi_map, 0.4, masked, letterbox)
        assert region.box == whole.box
        assert region.visible == tuple((20, 10 * row, 30, 10 * row + 10) for row in rows)


def test_what_is_shown_has_the_margin_of_the_box_and_ends_with_the_image() -> None:
    roi_map = np.zeros((8, 8), np.float32)
    roi_map[0, 1:4] = roi_map[1, 3] = 1.0
    how = RegionSettings(
        blur_sigma=None, min_box_side=1, margin_cells=0.5, mask_threshold_ratio=1.0
    )
    (region,) = crop_regions(roi_map, 0.4, how, Letterbox.square((80, 80)))
    assert region.box == (5, 0, 45, 25)
    assert region.visible == ((5, 0, 45, 15), (25, 5, 45, 25))


def test_padding_is_never_worth_showing() -> None:
    """Of an image of 8 x 2 cells, cells above it score as high as the region."""
    roi_map = np.zeros((8, 8), np.float32)
    roi_map[2:4, 4] = 1.0
    how = RegionSettings(blur_sigma=None, min_box_side=3, mask_threshold_ratio=1.0)
    (region,) = crop_regions(roi_map, 0.5, how, Letterbox.square((80, 20)))
    assert region.visible == ((40, 0, 50, 10),)


def test_presets_that_mask_and_those_that_do_not() -> None:
    ratios = {name: item.mask_threshold_ratio for name, item in REGION_PRESETS.items()}
    assert ratios == {"default": 1.0, "reference-mask": 1.0, "reference-boxes": None}


def test_only_cells_that_exist_can_be_shown() -> None:
    image = ImageFeatures(torch.zeros(16, 1), GridShape(4, 4), Letterbox.square((80, 80)))
    for cells in (np.ones((4, 5), np.bool_), np.zeros((4, 4), np.bool_)):
        with pytest.raises(ValueError, match="at least one"):
            image.showing(cells)
    assert image.showing(np.ones((4, 4), np.bool_)).shown is None
