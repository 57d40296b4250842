import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_contracts.label_settings import RegionSettings
from sdrpn_core.evaluation.baselines import (
    centred_box,
    random_crop_box,
    raw_attention_regions,
    relative_attention,
    vicrop_box,
)
from sdrpn_core.geometry import BoxXYXY, Letterbox
from tests.oracles.vicrop_loop import vicrop_square

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=10)
# Whole numbers: their window sums are exact however they are added up.
COUNTS = hnp.arrays(np.float64, SHAPES, elements=st.integers(0, 50).map(float))
IMAGE_SIZES = st.tuples(st.integers(1, 2000), st.integers(1, 2000))
UNBLURRED = RegionSettings.preset("default").model_copy(
    update={"blur_sigma": None, "margin_cells": 0.0}
)


# --- ViCrop


@settings(max_examples=200, deadline=None)
@given(COUNTS, IMAGE_SIZES, st.integers(1, 700))
def test_vicrop_equals_brute_force(attention, image_size, base_side):
    box = vicrop_box(attention, Letterbox.identity(image_size), base_side)
    expected = vicrop_square(attention, image_size, base_side)
    assert (box is None) == (expected is None)
    if box is not None:
        assert box == pytest.approx(expected)


@settings(max_examples=200, deadline=None)
@given(COUNTS, IMAGE_SIZES, st.integers(1, 700))
def test_vicrop_box_lies_inside_the_image(attention, image_size, base_side):
    box = vicrop_box(attention, Letterbox.square(image_size), base_side)
    if box is not None:
        assert 0 <= box.x0 < box.x1 <= image_size[0]
        assert 0 <= box.y0 < box.y1 <= image_size[1]


def test_vicrop_finds_a_bright_square():
    attention = np.full((24, 24), 0.01)
    attention[4:8, 10:14] = 1.0
    box = vicrop_box(attention, Letterbox.identity((2400, 2400)), 400)
    assert box == pytest.approx((1000, 400, 1400, 800))


def test_vicrop_takes_a_larger_window_for_a_larger_object():
    attention = np.zeros((24, 24))
    attention[4:10, 10:16] = 1.0
    box = vicrop_box(attention, Letterbox.identity((2400, 2400)), 400)
    assert box == pytest.approx((980, 380, 1620, 1020))


def test_vicrop_undoes_the_letterbox_and_ignores_padding():
    attention = np.zeros((24, 24))
    attention[0:4, 0:4] = 9.0  # padding
    attention[8:12, 10:14] = 1.0
    box = vicrop_box(attention, Letterbox.square((2400, 1200)), 400)
    assert box == pytest.approx((1000, 200, 1400, 600))


def test_vicrop_of_a_small_image_is_no_crop():
    assert vicrop_box(np.ones((24, 24)), Letterbox.identity((300, 200)), 336) is None


def test_vicrop_window_has_at_least_one_cell():
    """Its code divides by a window of 0 cells when a cell is larger than the crop."""
    attention = np.zeros((4, 4))
    attention[2, 1] = 1.0
    box = vicrop_box(attention, Letterbox.identity((4000, 4000)), 336)
    assert box == pytest.approx((1500 - 168, 2500 - 168, 1500 + 168, 2500 + 168))


def test_vicrop_of_a_tall_image():
    """Its code divides by 0 tiles on portrait images."""
    attention = np.zeros((24, 4))
    attention[20, 1] = 1.0
    box = vicrop_box(attention, Letterbox.identity((400, 2400)), 336)
    assert box is not None
    assert box.x0 <= 150 <= box.x1
    assert box.y0 <= 2050 <= box.y1


def test_relative_attention_removes_what_every_question_attends_to():
    general = np.full((4, 4), 0.01, np.float32)
    general[0, 0] = 1.0
    question = general.copy()
    question[2, 3] = 0.05
    relative = relative_attention(question, general)
    assert np.unravel_index(relative.argmax(), (4, 4)) == (2, 3)
    np.testing.assert_allclose(relative[0, 0], 1.0, rtol=1e-3)


@given(
    hnp.arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32)),
    hnp.arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32)),
)
def test_relative_attention_is_finite(question, general):
    """Its code divides by the general attention as it is."""
    relative = relative_attention(question, general)
    assert np.isfinite(relative).all()
    assert (relative >= 0).all()
    assert ((relative > 0) == (question > 0)).all()


def test_relative_attention_ignores_the_scale_of_the_general_map():
    rng = np.random.default_rng(0)
    question, general = rng.random((2, 5, 5))
    scaled = relative_attention(question, general * 1e-6) * 1e-6
    np.testing.assert_allclose(scaled, relative_attention(question, general))


# --- random crops


@given(IMAGE_SIZES, st.tuples(st.floats(1, 2500), st.floats(1, 2500)), st.text())
def test_random_crop_has_its_size_and_lies_inside(image_size, crop_size, question_id):
    box = random_crop_box(image_size, crop_size, question_id)
    assert box == random_crop_box(image_size, crop_size, question_id)
    assert box.x1 - box.x0 == pytest.approx(min(crop_size[0], image_size[0]))
    assert box.y1 - box.y0 == pytest.approx(min(crop_size[1], image_size[1]))
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= image_size[0] + 1e-6
    assert box.y1 <= image_size[1] + 1e-6


def test_random_crops_are_spread_over_the_image():
    crops = [random_crop_box((1000, 1000), (100, 100), f"q{number}") for number in range(400)]
    centres = np.array([crop.center for crop in crops])
    np.testing.assert_allclose(centres.mean(axis=0), 500, atol=50)
    assert centres.min() < 100
    assert centres.max() > 900


@pytest.mark.parametrize(
    ("centre", "expected"),
    [
        ((50, 50), (40, 35, 60, 65)),
        ((0, 0), (0, 0, 20, 30)),
        ((99, 199), (80, 170, 100, 200)),
    ],
)
def test_centred_box_is_shifted_into_the_image(centre, expected):
    assert centred_box(centre, (20, 30), (100, 200)) == expected


def test_centred_box_is_cut_to_a_smaller_image():
    assert centred_box((5, 5), (50, 50), (10, 20)) == BoxXYXY(0, 0, 10, 20)


# --- raw attention


def test_raw_attention_is_thresholded_relative_to_its_maximum():
    attention = np.zeros((12, 12), np.float32)
    attention[3:6, 4:8] = 1e-3
    attention[9, 9] = 4e-4
    letterbox = Letterbox.identity((12, 12))
    (region,) = raw_attention_regions(attention, 0.5, UNBLURRED, letterbox)
    assert region.box == (4, 3, 8, 6)
    assert raw_attention_regions(np.zeros((12, 12)), 0.5, UNBLURRED, letterbox) == ()


def test_raw_attention_maximum_is_taken_inside_the_image():
    attention = np.zeros((12, 12), np.float32)
    attention[0, 0] = 1.0
    attention[5:8, 4:8] = 1e-3
    letterbox = Letterbox.square((1200, 600))
    (region,) = raw_attention_regions(attention, 0.5, UNBLURRED, letterbox)
    assert region.box == (400, 200, 800, 500)
