import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdrpn_core.evaluation.results import roi_quality_of
from sdrpn_core.evaluation.roi_quality import (
    EMPTY_MASK_QUALITY,
    box_quality,
    mask_quality,
    points_inside,
    true_cells,
    true_coverage,
)
from sdrpn_core.geometry import BoxXYXY, GridShape, Letterbox

IMAGE = (100, 100)
GRID = GridShape(10, 10)
FLAT = Letterbox.identity(IMAGE)


@st.composite
def boxes(draw, limit=100):
    x0, y0 = draw(st.integers(0, limit - 1)), draw(st.integers(0, limit - 1))
    return BoxXYXY(
        float(x0),
        float(y0),
        float(draw(st.integers(x0 + 1, limit))),
        float(draw(st.integers(y0 + 1, limit))),
    )


BOX_LISTS = st.lists(boxes(), min_size=1, max_size=4)


def pixels(box_list, size=100):
    """The union drawn on whole pixels: what the exact areas must equal for integer boxes."""
    drawn = np.zeros((size, size), np.bool_)
    for box in box_list:
        x0, y0, x1, y1 = map(int, box)
        drawn[y0:y1, x0:x1] = True
    return drawn


def cells(*places):
    mask = np.zeros(GRID, np.bool_)
    for y, x in places:
        mask[y, x] = True
    return mask


# --- which cells are true


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        pytest.param((20, 30, 40, 40), [(3, 2), (3, 3)], id="whole cells"),
        pytest.param((24, 34, 36, 36), [(3, 2), (3, 3)], id="centres inside"),
        pytest.param((25, 35, 35, 45), [(3, 2)], id="a centre on the far edge is outside"),
        pytest.param((1, 1, 3, 3), [(0, 0)], id="smaller than a cell, off its centre"),
        pytest.param((8, 1, 13, 3), [(0, 1)], id="between centres: the cell covered most"),
        pytest.param((8, 1, 12, 3), [(0, 0), (0, 1)], id="covered equally"),
        pytest.param((0, 57, 40, 62), [(5, 0), (5, 1), (5, 2), (5, 3)], id="thin line of text"),
        pytest.param((150, 0, 160, 10), [], id="outside the image"),
        pytest.param((30, 30, 30, 40), [], id="no area"),
    ],
)
def test_true_cells(box, expected):
    np.testing.assert_array_equal(true_cells([BoxXYXY(*box)], FLAT, GRID), cells(*expected))


def test_true_cells_follow_the_letterbox():
    mask = true_cells([BoxXYXY(0, 0, 25, 25)], Letterbox.square((100, 50)), GridShape(4, 4))
    np.testing.assert_array_equal(np.argwhere(mask), [[1, 0]])


@given(BOX_LISTS)
def test_every_box_has_a_cell_that_it_covers(box_list):
    coverage = true_coverage(box_list, FLAT, GRID)
    for box in box_list:
        mask = true_cells([box], FLAT, GRID)
        assert mask.any()
        assert (coverage[mask] > 0).all()


@given(BOX_LISTS)
def test_transposed_boxes_have_transposed_cells(box_list):
    turned = [BoxXYXY(box.y0, box.x0, box.y1, box.x1) for box in box_list]
    expected = true_cells(box_list, FLAT, GRID).T
    np.testing.assert_array_equal(true_cells(turned, FLAT, GRID), expected)


@given(BOX_LISTS)
def test_coverage_counts_overlapping_boxes_once(box_list):
    expected = pixels(box_list).reshape(10, 10, 10, 10).mean(axis=(1, 3))
    np.testing.assert_allclose(true_coverage(box_list, FLAT, GRID), expected, atol=1e-5)


# --- masks


def test_mask_quality_of_a_worked_example():
    quality = mask_quality(cells((3, 2), (3, 3), (7, 7)), [BoxXYXY(20, 30, 35, 50)], FLAT)
    # True by centre: columns 2 (and not 3: its centre 35 is the open end), rows 3 and 4.
    assert (quality.num_true, quality.num_hits, quality.num_selected) == (2, 1, 3)
    # Cell (3, 3) shows half of its width of the box, but its centre is outside.
    assert quality.touch_precision == pytest.approx(2 / 3)
    assert quality.centre_precision == pytest.approx(1 / 3)
    assert quality.recall == pytest.approx(1 / 2)


def test_perfect_empty_and_missing_masks():
    box = [BoxXYXY(20, 30, 40, 50)]
    perfect = mask_quality(true_cells(box, FLAT, GRID), box, FLAT)
    assert (perfect.touch_precision, perfect.recall) == (1, 1)
    empty = mask_quality(cells(), box, FLAT)
    assert math.isnan(empty.touch_precision)
    assert empty.recall == 0
    assert math.isnan(mask_quality(cells((0, 0)), [], FLAT).recall)


def test_padding_is_not_counted_as_background_found():
    letterbox = Letterbox.square((100, 50))
    box = [BoxXYXY(0, 0, 10, 10)]
    everywhere = mask_quality(np.ones(GRID, np.bool_), box, letterbox)
    assert everywhere.num_selected == letterbox.content_mask(GRID).sum() == 60


def test_qualities_add_up_to_the_micro_average():
    box = [BoxXYXY(20, 30, 40, 40)]
    masks = [cells((3, 2)), cells((0, 0), (3, 3), (3, 2))]
    total = sum((mask_quality(mask, box, FLAT) for mask in masks), EMPTY_MASK_QUALITY)
    assert total.num_samples == 2
    assert total.touch_precision == pytest.approx(3 / 4)
    assert total.recall == pytest.approx(3 / 4)
    assert math.isnan(EMPTY_MASK_QUALITY.touch_precision)


# --- pointing


@pytest.mark.parametrize(
    ("values", "hits"),
    [
        ({(3, 2): 1.0, (0, 0): 0.9}, True),
        ({(3, 2): 0.9, (0, 0): 1.0}, False),
        ({(3, 2): 1.0, (3, 3): 1.0}, True),
        ({(3, 2): 1.0, (0, 0): 1.0}, False),
        ({}, False),
    ],
)
def test_pointing(values, hits):
    scores = np.zeros(GRID, np.float32)
    for place, value in values.items():
        scores[place] = value
    assert points_inside(scores, [BoxXYXY(20, 30, 40, 40)], FLAT) is hits


# --- boxes


@given(st.lists(boxes(), max_size=4), BOX_LISTS)
def test_box_quality_equals_counting_pixels(proposed, true_boxes):
    found, wanted = pixels(proposed), pixels(true_boxes)
    quality = box_quality(proposed, true_boxes, IMAGE)
    assert quality.coverage == pytest.approx((found & wanted).sum() / wanted.sum())
    assert quality.iou == pytest.approx((found & wanted).sum() / (found | wanted).sum())


def test_true_boxes_without_area_are_refused():
    with pytest.raises(ValueError, match="have no area in an image of"):
        box_quality([], [BoxXYXY(100, 0, 120, 10)], IMAGE)


def test_summary_of_a_worked_example():
    true = BoxXYXY(0, 0, 10, 10)
    proposals = [
        [BoxXYXY(0, 0, 10, 9)],  # covers exactly 90 %
        [BoxXYXY(0, 0, 10, 5)],  # exactly 50 %
        [BoxXYXY(50, 50, 60, 60)],
        [],
    ]
    row = {**asdict(FLAT), "true_box": true, "roi_map": None}
    rows = [{**row, "boxes": boxes} for boxes in proposals]
    summary = roi_quality_of([*rows, {**row, "true_box": None, "boxes": []}])
    assert summary is not None
    assert (summary.num_documents, summary.no_crop_ratio) == (4, 0.25)
    assert summary.mean_coverage == pytest.approx((0.9 + 0.5) / 4)
    assert (summary.box_recall, summary.box_recall_90) == (0.5, 0.25)
    assert summary.mean_iou == pytest.approx((0.9 + 0.5) / 4)
    assert summary.pointing_accuracy is None


def test_rows_without_true_boxes_have_no_summary():
    assert roi_quality_of([{"true_box": None}]) is None
