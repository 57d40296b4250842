import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import label as skimage_label

from data_contracts.label_settings import RegionSettings
from sdrpn_core.filters import gaussian_blur_3x3
from sdrpn_core.geometry import GridBox, GridShape, Letterbox
from sdrpn_core.regions import crop_regions, propose_regions
from tests.oracles.labels_loop import blur_3x3
from tests.oracles.reference_cases import digest, probability_case
from tests.oracles.regions_loop import boxes_reference, components

DEFAULT = RegionSettings.preset("default")
REFERENCE = RegionSettings.preset("reference-boxes")
MASK = RegionSettings.preset("reference-mask")
MANY = RegionSettings(max_regions=100, max_box_area_ratio=None)

# Off the lattice of blurred values, so that rounding does not decide a cell.
THRESHOLDS = st.sampled_from([0.0431, 0.1513, 0.3217])
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
PROBABILITY_MAPS = hnp.arrays(
    np.float64,
    SHAPES,
    elements=st.one_of(st.sampled_from([0.0, 0.25, 1.0]), st.floats(0.0, 1.0, width=16)),
    fill=st.just(0.0),
)


def rectangles(shape, *boxes):
    probability = np.zeros(shape, np.float32)
    for x0, y0, x1, y1, value in boxes:
        probability[y0:y1, x0:x1] = value
    return probability


def unblurred(label_settings, **changes):
    return label_settings.model_copy(update={"blur_sigma": None, **changes})


# --- the blur


@settings(max_examples=50, deadline=None)
@given(PROBABILITY_MAPS, st.sampled_from([0.5, 1.0, 3.0]))
def test_blur_equals_loop_oracle(probability, sigma):
    expected = blur_3x3(probability.tolist(), sigma)
    np.testing.assert_allclose(gaussian_blur_3x3(probability, sigma).numpy(), expected, atol=1e-12)


def test_blur_keeps_constants_and_precision():
    for dtype, expected in ((np.float32, torch.float32), (np.float64, torch.float64)):
        blurred = gaussian_blur_3x3(np.full((2, 3, 5), 0.3, dtype), 1.0)
        assert blurred.dtype == expected
        np.testing.assert_allclose(blurred.numpy(), 0.3, rtol=1e-6)
    assert gaussian_blur_3x3(torch.zeros(4, 4, dtype=torch.bfloat16), 1.0).dtype == torch.float32


# --- the reference's boxes


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.05, "562694823698b221"), (0.15, "31cdd6f156e2ec83"), (0.4, "9c9084423f86d26a")],
)
def test_reference_preset_gives_what_the_reference_gave(threshold, expected):
    cases = [propose_regions(probability_case(s), threshold, REFERENCE) for s in range(48)]
    boxes = [np.array(case, dtype=int).reshape(-1, 4) for case in cases]
    assert digest([*boxes, np.array([len(case) for case in cases])]) == expected


@settings(max_examples=300, deadline=None)
@given(PROBABILITY_MAPS, THRESHOLDS)
def test_reference_preset_equals_loop_oracle(probability, threshold):
    expected = boxes_reference(probability.tolist(), threshold)
    assert propose_regions(probability, threshold, REFERENCE) == expected


@settings(max_examples=100, deadline=None)
@given(PROBABILITY_MAPS, THRESHOLDS)
def test_loop_oracle_orders_components_as_scikit_image_does(probability, threshold):
    blurred = np.array(blur_3x3(probability.tolist()))
    labelled = skimage_label(blurred > threshold, connectivity=2)
    found = components(blurred.tolist(), threshold)
    assert len(found) == labelled.max()
    for index, cells in enumerate(found, start=1):
        assert {labelled[cell] for cell in cells} == {index}


def test_reference_drops_all_regions_above_two():
    three = rectangles((24, 24), (2, 2, 5, 5, 1), (10, 2, 13, 5, 1), (18, 2, 21, 5, 1))
    assert propose_regions(three, 0.15, REFERENCE) == []
    assert len(propose_regions(three[:, :16], 0.15, REFERENCE)) == 2


@pytest.mark.parametrize(("columns", "num_regions"), [(15, 1), (16, 0)])
def test_reference_drops_components_over_225_cells(columns, num_regions):
    wide = rectangles((24, 24), (3, 3, 3 + columns, 18, 1))
    assert len(propose_regions(wide, 0.15, unblurred(REFERENCE))) == num_regions


def test_reference_drops_single_cells():
    assert propose_regions(rectangles((24, 24), (5, 5, 6, 6, 1)), 0.5, unblurred(REFERENCE)) == []


def test_reference_mask_is_one_box_around_everything():
    two = rectangles((24, 24), (2, 3, 3, 4, 1), (20, 18, 22, 20, 1))
    assert propose_regions(two, 0.15, unblurred(MASK)) == [GridBox(2, 3, 22, 20)]
    assert propose_regions(two, 1.0, MASK) == []


# --- ours


def test_defect_19_grown_boxes_reach_the_last_row_and_column():
    corner = rectangles((24, 24), (22, 23, 24, 24, 1))
    assert propose_regions(corner, 0.5, unblurred(REFERENCE)) == [GridBox(21, 22, 23, 23)]
    assert propose_regions(corner, 0.5, unblurred(DEFAULT)) == [GridBox(21, 21, 24, 24)]


def test_defect_19_more_regions_than_allowed_keep_the_strongest():
    three = rectangles((24, 24), (2, 2, 5, 5, 0.5), (10, 2, 13, 5, 0.9), (18, 2, 21, 5, 0.7))
    allowed = unblurred(DEFAULT, max_regions=2)
    assert propose_regions(three, 0.1, allowed) == [GridBox(10, 2, 13, 5), GridBox(18, 2, 21, 5)]


@pytest.mark.parametrize(("brighter", "box"), [(4, (4, 5, 7, 8)), (7, (5, 5, 8, 8))])
def test_a_box_grows_by_an_odd_cell_towards_the_higher_score(brighter, box):
    # Two cells to three used to grow right and down, half a cell off centre.
    pair = rectangles((12, 12), (5, 5, 7, 7, 1.0), (brighter, 5, brighter + 1, 7, 0.3))
    pair[7, 5:7] = 0.2
    assert propose_regions(pair, 0.5, unblurred(DEFAULT)) == [box]


def test_a_box_does_not_grow_towards_padding():
    """A strong score there said nothing about the image, and the crop lost a row that shows it."""
    letterbox, grid = Letterbox.square((1200, 400)), GridShape(24, 24)
    content = letterbox.content_mask(grid)
    pair = rectangles(grid, (5, 8, 8, 10, 1.0), (5, 10, 8, 11, 0.4), (5, 7, 8, 8, 0.8))
    assert propose_regions(pair, 0.5, unblurred(DEFAULT), content) == [GridBox(5, 8, 8, 11)]


def test_no_weaker_region_takes_the_place_of_one_that_is_too_large():
    probability = rectangles((24, 24), (0, 0, 24, 15, 0.9), (10, 20, 12, 22, 0.6))
    assert propose_regions(probability, 0.5, unblurred(DEFAULT)) == []
    two = unblurred(DEFAULT, max_regions=2)
    assert propose_regions(probability, 0.5, two) == [GridBox(10, 20, 13, 23)]


def test_mirrored_rows_grow_alike_when_transposed():
    """Sums are taken in another order there; their rounding chose the side."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        row = rng.uniform(0.1, 0.4, size=10).astype(np.float32)
        probability = np.zeros((12, 12), np.float32)
        probability[5:7, 1:11] = 1.0
        probability[4, 1:11], probability[7, 1:11] = row, row[::-1]
        upright = propose_regions(probability, 0.5, unblurred(MANY))
        turned = propose_regions(probability.T, 0.5, unblurred(MANY))
        assert [(y0, x0, y1, x1) for x0, y0, x1, y1 in turned] == upright


def test_a_box_at_an_edge_grows_into_the_grid():
    for corner, box in ((0, (0, 0, 3, 3)), (10, (9, 9, 12, 12))):
        pair = rectangles((12, 12), (corner, corner, corner + 2, corner + 2, 1.0))
        assert propose_regions(pair, 0.5, unblurred(DEFAULT)) == [box]


def test_margin_is_added_in_cells_and_ends_with_the_image():
    spot = rectangles((12, 12), (0, 4, 3, 7, 1.0))
    for margin, box in ((0.0, (0, 400, 300, 700)), (0.5, (0, 350, 350, 750))):
        with_margin = unblurred(DEFAULT, margin_cells=margin)
        (region,) = crop_regions(spot, 0.5, with_margin, Letterbox.square((1200, 1200)))
        assert region.box == box
    (wide,) = crop_regions(spot, 0.5, with_margin, Letterbox.square((1200, 400)))
    assert wide.box == (0, 0, 350, 350)  # 400 rows of padding above


def test_defect_20_no_region_in_padding():
    letterbox, grid = Letterbox.square((800, 200)), GridShape(24, 24)
    in_padding = rectangles(grid, (0, 0, 3, 3, 1.0), (10, 11, 13, 13, 0.6))
    (box,) = propose_regions(in_padding, 0.3, DEFAULT, letterbox.content_mask(grid))
    assert letterbox.cells_to_image(box, grid).area > 0
    assert propose_regions(in_padding, 0.3, DEFAULT)[0].y1 <= 6


def test_defect_20_grown_box_on_the_edge_of_the_image_still_shows_some_of_it():
    letterbox, grid = Letterbox.square((800, 200)), GridShape(24, 24)
    edge = rectangles(grid, (5, 8, 6, 10, 1.0))
    (box,) = propose_regions(edge, 0.3, unblurred(DEFAULT), letterbox.content_mask(grid))
    assert letterbox.cells_to_image(box, grid).area > 0


def test_defect_21_relative_threshold_is_a_setting():
    weak = rectangles((12, 12), (3, 3, 6, 6, 0.02))
    absolute = DEFAULT.model_copy(update={"threshold_is_peak_ratio": False})
    assert propose_regions(weak, 0.5, absolute) == []
    assert propose_regions(weak, 0.5, DEFAULT) == [GridBox(3, 3, 6, 6)]
    assert propose_regions(np.zeros((12, 12)), 0.5, DEFAULT) == []


@pytest.mark.parametrize("region_settings", [DEFAULT, REFERENCE])
def test_cells_on_the_threshold_are_outside(region_settings):
    # A strong cell in the corner makes 0.5 both half of the peak and 0.5 itself.
    level = rectangles((12, 12), (3, 3, 6, 6, 0.5), (0, 0, 1, 1, 1.0))
    region_settings = unblurred(region_settings).model_copy(update={"max_regions": 2})
    block = GridBox(3, 3, 6, 6)
    assert block not in propose_regions(level, 0.5, region_settings)
    assert block in propose_regions(level, 0.499, region_settings)


def test_diagonal_cells_are_one_region():
    diagonal = np.eye(8, dtype=np.float32)
    diagonal[4:] = 0
    assert propose_regions(diagonal, 0.5, unblurred(DEFAULT)) == [GridBox(0, 0, 4, 4)]


def test_a_region_over_half_of_the_content_is_no_zoom():
    half = rectangles((8, 8), (0, 0, 4, 8, 1))
    more = rectangles((8, 8), (0, 0, 5, 8, 1))
    assert propose_regions(half, 0.5, unblurred(DEFAULT)) == [GridBox(0, 0, 4, 8)]
    assert propose_regions(more, 0.5, unblurred(DEFAULT)) == []
    content = np.zeros((8, 8), np.bool_)
    content[2:6] = True
    assert propose_regions(more, 0.5, unblurred(DEFAULT), content) == []


@settings(max_examples=200, deadline=None)
@given(PROBABILITY_MAPS, THRESHOLDS, st.integers(1, 3), st.booleans())
def test_default_boxes_are_sound(probability, threshold, max_regions, single_box):
    height, width = probability.shape
    changes = {"max_regions": max_regions, "single_box": single_box}
    boxes = propose_regions(probability, threshold, MANY.model_copy(update=changes))
    blurred = gaussian_blur_3x3(probability, 1.0).numpy()
    assert bool(boxes) == bool((blurred > threshold).any())
    assert len(boxes) <= (1 if single_box else max_regions)
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        assert x1 - x0 >= min(3, width)
        assert y1 - y0 >= min(3, height)
    if boxes:
        x0, y0, x1, y1 = boxes[0]
        assert blurred[y0:y1, x0:x1].max() == blurred.max()


@settings(max_examples=100, deadline=None)
@given(PROBABILITY_MAPS, THRESHOLDS)
def test_transposed_map_gives_transposed_boxes(probability, threshold):
    upright = propose_regions(probability, threshold, MANY)
    turned = propose_regions(probability.T, threshold, MANY)
    assert {(y0, x0, y1, x1) for x0, y0, x1, y1 in turned} == set(upright)


@settings(max_examples=100, deadline=None)
@given(PROBABILITY_MAPS, THRESHOLDS)
def test_flipped_map_gives_flipped_boxes(probability, threshold):
    odd_growth_only = MANY.model_copy(update={"min_box_side": 1})
    width = probability.shape[1]
    upright = propose_regions(probability, threshold, odd_growth_only)
    flipped = propose_regions(probability[:, ::-1], threshold, odd_growth_only)
    assert {(width - x1, y0, width - x0, y1) for x0, y0, x1, y1 in flipped} == set(upright)


@pytest.mark.parametrize("seed", range(20))
def test_flipped_map_without_equal_scores_gives_flipped_grown_boxes(seed):
    probability = np.random.default_rng(seed).uniform(size=(9, 11)) ** 8
    upright = propose_regions(probability, 0.2, MANY)
    flipped = propose_regions(probability[::-1, ::-1], 0.2, MANY)
    assert upright
    assert {(11 - x1, 9 - y1, 11 - x0, 9 - y0) for x0, y0, x1, y1 in flipped} == set(upright)


@pytest.mark.parametrize(
    "probability", [np.zeros(576), np.zeros((1, 24, 24)), np.full((4, 4), np.nan)]
)
def test_maps_that_are_not_finite_grids_are_refused(probability):
    with pytest.raises(ValueError, match=r"finite and \(h, w\)"):
        propose_regions(probability, 0.1, DEFAULT)


def test_unknown_region_preset_is_named():
    with pytest.raises(ValueError, match="no region preset 'boxes'"):
        RegionSettings.preset("boxes")
