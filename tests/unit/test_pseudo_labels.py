import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_contracts.enums import LabelStatus, RoiLabel
from data_contracts.label_settings import LabelSettings
from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.pseudo_labels import make_pseudo_labels
from tests.label_samples import (
    BACKGROUND,
    DEFAULT,
    FOREGROUND,
    IGNORE,
    IMAGE_SIZE,
    LLAVA,
    PRESETS,
    QWEN,
    blob,
    one,
    samples,
)
from tests.oracles.labels_loop import labels_llava, labels_qwen, padding_of_square
from tests.oracles.reference_cases import IMAGE_SIZES, attention_case, digest

# --- the reference's variants


def test_llava_preset_gives_what_the_reference_gave():
    grounding, sink = map(np.stack, zip(*(attention_case(seed) for seed in range(48)), strict=True))
    labels = make_pseudo_labels(grounding, sink, LLAVA).labels
    assert (labels == FOREGROUND).sum() > 1000
    assert digest(labels.reshape(48, -1)) == "cf995c585b4ce994"


def test_qwen_preset_gives_what_the_reference_gave():
    grounding, sink = map(np.stack, zip(*(attention_case(seed) for seed in range(48)), strict=True))
    labels = make_pseudo_labels(grounding, sink, QWEN, np.array(IMAGE_SIZES * 8)).labels
    assert (labels == FOREGROUND).sum() > 1000
    assert digest(labels) == "5f435d2084c26637"


@settings(max_examples=300, deadline=None)
@given(samples())
def test_llava_preset_equals_loop_oracle(sample):
    grounding, sink = sample
    np.testing.assert_array_equal(one(*sample, LLAVA).labels[0], labels_llava(grounding, sink))


@settings(max_examples=200, deadline=None)
@given(samples())
def test_qwen_preset_without_padding_equals_loop_oracle(sample):
    grounding, sink = sample
    np.testing.assert_array_equal(one(*sample, QWEN).labels[0], labels_qwen(grounding, sink))


@settings(max_examples=200, deadline=None)
@given(samples(square=True), IMAGE_SIZE)
def test_qwen_preset_with_padding_equals_loop_oracle(sample, image_size):
    expected = labels_qwen(*sample, image_size)
    np.testing.assert_array_equal(one(*sample, QWEN, image_size).labels[0], expected)


@settings(max_examples=100, deadline=None)
@given(IMAGE_SIZE, st.integers(1, 32))
def test_reference_content_rounding_equals_loop_oracle(image_size, num_cells):
    grounding = np.ones((num_cells, num_cells))
    content = one(grounding, None, QWEN, image_size).content_mask[0]
    np.testing.assert_array_equal(~content, padding_of_square(image_size, num_cells))


@pytest.mark.parametrize(("dtype", "is_foreground"), [(np.float32, True), (np.float64, False)])
def test_threshold_ties_are_decided_in_float64(dtype, is_foreground):
    # float32(0.2) is above 0.2, and the reference multiplies by a float64 mask before it compares.
    grounding = np.zeros((6, 6), dtype)
    grounding[0, 0], grounding[0, 1] = 1.0, 0.2
    assert (one(grounding, None, LLAVA).labels[0, 0, 1] == FOREGROUND) == is_foreground


@pytest.mark.parametrize(("value", "is_sink"), [(0.001, True), (0.00099, False)])
def test_sink_threshold_is_inclusive(value, is_sink):
    sink = np.full((4, 4), value, np.float32)
    assert one(blob((4, 4), 0, 0, 1, 1), sink, LLAVA).sink_mask.all() == is_sink


@pytest.mark.parametrize(("peak", "status"), [(0.005, "ok"), (0.0049, "weak_attention")])
def test_qwen_gate_is_inclusive(peak, status):
    grounding = blob((8, 8), 2, 2, 3, 3).astype(np.float64) * peak
    assert one(grounding, None, QWEN).status == (status,)


@settings(max_examples=100, deadline=None)
@given(samples(), st.integers(0, 4))
def test_a_border_is_what_a_sink_signal_on_it_would_be(sample, num_cells):
    """The outermost ring is where Gemma 4's attention gathers, by its authors' account."""
    grounding = sample[0]
    height, width = grounding.shape
    signal = np.ones_like(grounding)
    for y in range(height):
        for x in range(width):
            if min(y, x, height - 1 - y, width - 1 - x) >= num_cells:
                signal[y, x] = 0.0
    given_signal = one(grounding, signal, DEFAULT)
    found = one(grounding, None, DEFAULT.model_copy(update={"border_cells": num_cells}))
    np.testing.assert_array_equal(found.sink_mask, given_signal.sink_mask)
    np.testing.assert_array_equal(found.labels, given_signal.labels)
    assert found.status == given_signal.status


def test_max_is_taken_after_sinks_are_removed():
    grounding = blob((8, 8), 1, 1, 3, 3, 0.1)
    grounding[7, 7] = 1.0
    sink = np.zeros((8, 8), np.float32)
    sink[7, 7] = 0.5
    assert one(grounding, None).labels[0, 1, 1] == IGNORE
    result = one(grounding, sink)
    assert result.labels[0, 1, 1] == FOREGROUND
    assert result.labels[0, 7, 7] == BACKGROUND
    assert result.max_attention[0] == np.float32(0.1)


@pytest.mark.parametrize(("columns", "status"), [(5, "ok"), (6, "box_too_large")])
def test_box_of_exactly_half_the_grid_is_rejected(columns, status):
    result = one(blob((4, 12), 0, 0, 4, columns), None, LLAVA)
    assert result.status == (status,)


# --- rules


def test_labels_of_a_worked_example():
    grounding = np.array(
        [
            [0.00, 0.00, 0.00, 0.15, 0.00],
            [0.00, 1.00, 0.05, 0.00, 0.00],
            [0.00, 0.15, 0.30, 0.00, 0.09],
            [0.00, 0.00, 0.00, 0.00, 0.00],
        ]
    )
    expected = np.array(
        [
            [0, 0, 0, -100, 0],
            [0, 1, -100, 0, 0],
            [0, -100, 1, 0, 0],
            [0, 0, 0, 0, 0],
        ]
    )
    result = one(grounding)
    np.testing.assert_array_equal(result.labels[0], expected)
    assert result.labels.dtype == np.int8
    assert result.status == (LabelStatus.OK,)
    assert tuple(result.boxes[0]) == (1, 1, 3, 3)
    assert (result.num_foreground[0], result.num_background[0], result.num_ignore[0]) == (2, 15, 3)


def status_cases():
    zeros = np.zeros((6, 6))
    nan = blob((6, 6), 1, 1, 2, 2).astype(np.float64)
    nan[5, 5] = np.nan
    infinite = np.where(nan == 1.0, np.inf, 0.0)
    small = blob((6, 6), 1, 1, 2, 2).astype(np.float64)
    everywhere = np.ones((6, 6))
    return [
        ("zero", zeros, zeros, LabelStatus.NO_ATTENTION),
        ("nan", nan, zeros, LabelStatus.NO_ATTENTION),
        ("infinite", infinite, zeros, LabelStatus.NO_ATTENTION),
        ("all sinks", small, everywhere, LabelStatus.NO_FOREGROUND),
        ("weak", small * 1e-4, zeros, LabelStatus.WEAK_ATTENTION),
        ("weak and large", everywhere * 1e-4, zeros, LabelStatus.WEAK_ATTENTION),
        ("full map", everywhere, zeros, LabelStatus.BOX_TOO_LARGE),
        ("border corners", np.eye(6), zeros, LabelStatus.BOX_TOO_LARGE),
        ("single cell", small, zeros, LabelStatus.OK),
    ]


@pytest.mark.parametrize(
    ("grounding", "sink", "status"),
    [case[1:] for case in status_cases()],
    ids=[case[0] for case in status_cases()],
)
def test_status_names_the_cause(grounding, sink, status):
    gated = DEFAULT.model_copy(update={"min_max_attention": 5e-3})
    result = one(grounding, sink, gated)
    assert result.status == (status,)
    assert (result.labels == IGNORE).all() == (status != LabelStatus.OK)
    assert np.isfinite(result.max_attention).all()


def test_rejected_box_is_kept_and_missing_box_is_marked():
    result = make_pseudo_labels(np.stack([np.ones((3, 5)), np.zeros((3, 5))]), None, DEFAULT)
    np.testing.assert_array_equal(result.boxes, [[0, 0, 5, 3], [-1, -1, -1, -1]])


@settings(max_examples=200, deadline=None)
@given(samples(), st.sampled_from(PRESETS), IMAGE_SIZE)
def test_invariants(sample, label_settings, image_size):
    result = one(*sample, label_settings, image_size)
    labels, is_ok = result.labels[0], result.status[0] == LabelStatus.OK
    assert set(np.unique(labels)) <= {int(label) for label in RoiLabel}
    counts = [(labels == value).sum() for value in (FOREGROUND, BACKGROUND, IGNORE)]
    assert counts == [result.num_foreground, result.num_background, result.num_ignore]
    assert is_ok == bool((labels == FOREGROUND).any())
    if is_ok:
        x0, y0, x1, y1 = result.boxes[0]
        assert 0 <= x0 < x1 <= labels.shape[1]
        assert 0 <= y0 < y1 <= labels.shape[0]
        outside = labels.copy()
        outside[y0:y1, x0:x1] = IGNORE
        assert not (outside == FOREGROUND).any()
        assert not (labels[result.sink_mask[0]] == FOREGROUND).any()
        assert not (labels[~result.content_mask[0]] == FOREGROUND).any()


@settings(max_examples=100, deadline=None)
@given(samples(), st.sampled_from(PRESETS), IMAGE_SIZE)
def test_transposed_map_gives_transposed_labels(sample, label_settings, image_size):
    """Defect 13: the reference's torch twin mixed (row, col) with (x, y)."""
    grounding, sink = sample
    upright = one(grounding, sink, label_settings, image_size)
    turned = one(grounding.T, sink.T, label_settings, image_size[::-1])
    np.testing.assert_array_equal(turned.labels[0], upright.labels[0].T)
    x0, y0, x1, y1 = upright.boxes[0]
    assert tuple(turned.boxes[0]) == (y0, x0, y1, x1)


@settings(max_examples=100, deadline=None)
@given(samples(), st.sampled_from(PRESETS), IMAGE_SIZE, st.sampled_from([0, 1]))
def test_flipped_map_gives_flipped_labels(sample, label_settings, image_size, axis):
    # Even sizes, so that the letterbox itself is symmetric.
    image_size = (2 * image_size[0], 2 * image_size[1])
    grounding, sink = sample
    flipped = one(np.flip(grounding, axis), np.flip(sink, axis), label_settings, image_size)
    expected = np.flip(one(grounding, sink, label_settings, image_size).labels[0], axis)
    np.testing.assert_array_equal(flipped.labels[0], expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(samples(), min_size=1, max_size=4), st.sampled_from(PRESETS))
def test_batch_gives_what_its_samples_give(batch, label_settings):
    shape = batch[0][0].shape
    rng = np.random.default_rng(len(batch))
    grounding = np.stack([np.resize(sample[0], shape) for sample in batch]).astype(np.float32)
    sink = np.stack([np.resize(sample[1], shape) for sample in batch]).astype(np.float32)
    sizes = rng.integers(1, 900, (len(batch), 2))
    together = make_pseudo_labels(grounding, sink, label_settings, sizes)
    for index in range(len(batch)):
        alone = one(grounding[index], sink[index], label_settings, tuple(sizes[index]))
        np.testing.assert_array_equal(together.labels[index], alone.labels[0])
        np.testing.assert_array_equal(together.boxes[index], alone.boxes[0])
        assert together.status[index] == alone.status[0]


@settings(max_examples=100, deadline=None)
@given(samples(), st.integers(1, 4), st.booleans())
def test_padding_around_the_image_changes_no_label_inside(sample, pad, is_wide):
    """Defect 15: the area gate counted padding, and attention in padding set the maximum."""
    height = sample[0].shape[0]
    side = height + 2 * pad
    grounding, sink = (np.resize(array, (height, side)) for array in sample)
    padded, sinks = np.full((side, side), 1e6, grounding.dtype), np.zeros((side, side), sink.dtype)
    padded[pad : pad + height], sinks[pad : pad + height] = grounding, sink
    image_size = (side * 10, height * 10)
    if not is_wide:
        grounding, sink, padded, sinks = grounding.T, sink.T, padded.T, sinks.T
        image_size = image_size[::-1]
    inside = one(padded, sinks, DEFAULT, image_size).labels[0]
    inside = inside[pad : pad + height] if is_wide else inside[:, pad : pad + height]
    np.testing.assert_array_equal(inside, one(grounding, sink).labels[0])


def test_torch_input_and_half_precision_give_the_same_labels():
    grounding, sink = attention_case(1)
    half, half_sink = grounding.astype(np.float16), sink.astype(np.float16)
    expected = one(half.astype(np.float64), half_sink.astype(np.float32), LLAVA).labels
    from_torch = make_pseudo_labels(
        torch.from_numpy(half)[None], torch.from_numpy(half_sink)[None], LLAVA
    )
    assert (expected == FOREGROUND).any()
    np.testing.assert_array_equal(from_torch.labels, expected)
    assert isinstance(from_torch.labels, np.ndarray)


def test_inputs_are_left_alone():
    """Defect 5: the reference masked sinks in place, through an alias."""
    grounding, sink = attention_case(2)
    before = grounding.copy(), sink.copy()
    grounding.flags.writeable = sink.flags.writeable = False
    one(grounding, sink, QWEN, (640, 427))
    np.testing.assert_array_equal(grounding, before[0])
    np.testing.assert_array_equal(sink, before[1])


def test_empty_batch():
    result = make_pseudo_labels(np.zeros((0, 24, 24)), None, QWEN, np.zeros((0, 2), int))
    assert result.labels.shape == (0, 24, 24)
    assert result.boxes.shape == (0, 4)
    assert result.status == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((24, 24)), None, DEFAULT), r"grounding must be \(N, h, w\)"),
        ((np.zeros((1, 0, 24)), None, DEFAULT), r"grounding must be \(N, h, w\)"),
        ((np.zeros((2, 4, 4)), np.zeros((2, 4, 5)), DEFAULT), "sink must have the shape"),
        ((np.zeros((2, 4, 4)), None, DEFAULT, np.array([[5, 5]])), r"image_sizes must be \(2, 2\)"),
        ((np.zeros((1, 4, 4)), None, DEFAULT, np.array([[5, 0]])), "positive"),
        ((np.zeros((1, 4, 4)), None, DEFAULT, np.array([[5, 5, 5]])), r"\(1, 2\).*\(1, 4\)"),
    ],
)
def test_input_that_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_pseudo_labels(*arguments)


# --- defects of the reference


def test_defect_13_a_wide_object_keeps_its_box():
    """2 x 11 cells: transposing its box made cells inside it background."""
    result = one(blob((24, 24), 3, 8, 5, 19))
    assert tuple(result.boxes[0]) == (8, 3, 19, 5)
    assert (result.labels[0, 3:5, 8:19] == FOREGROUND).all()
    assert result.num_background[0] == 576 - 22


def test_defect_13_two_points_make_no_background_between_them():
    grounding = blob((24, 24), 2, 20, 3, 21) + blob((24, 24), 10, 4, 11, 5)
    labels = one(grounding).labels[0]
    assert not (labels[2:11, 4:21] == BACKGROUND).any()


def test_defect_13_an_object_below_half_the_grid_is_not_rejected():
    """272 cells of 576: one row and column too many made the reference's twin reject it."""
    assert one(blob((24, 24), 0, 0, 16, 17)).status == (LabelStatus.OK,)


def test_defect_14_counts_agree_with_a_rejected_map():
    result = one(np.ones((24, 24)))
    assert (result.num_ignore[0], result.num_foreground[0], result.num_background[0]) == (576, 0, 0)


def test_defect_15_attention_on_padding_is_not_foreground():
    grounding = blob((24, 24), 0, 5, 2, 7) + blob((24, 24), 11, 11, 12, 12, 0.5)
    result = one(grounding, None, DEFAULT, (800, 400))
    np.testing.assert_array_equal(np.argwhere(result.labels[0] == FOREGROUND), [[11, 11]])
    assert result.max_attention[0] == 0.5
    assert one(grounding, None, LLAVA).labels[0, 0, 5] == FOREGROUND


def test_defect_15_area_gate_is_relative_to_the_content():
    """12 x 13 cells are over half of an image that fills half of the grid."""
    grounding = blob((24, 24), 6, 0, 18, 13)
    assert one(grounding, None, DEFAULT, (800, 400)).status == (LabelStatus.BOX_TOO_LARGE,)
    assert one(grounding, None, DEFAULT).status == (LabelStatus.OK,)


def test_padding_is_background_or_ignored_as_asked():
    grounding = blob((24, 24), 11, 11, 13, 13)
    padding = ~Letterbox.square((800, 400)).content_mask(GridShape(24, 24))
    ignoring = DEFAULT.model_copy(update={"padding_label": "ignore"})
    kept, ignored = (one(grounding, None, s, (800, 400)).labels[0] for s in (DEFAULT, ignoring))
    assert (kept[padding] == BACKGROUND).all()
    assert (ignored[padding] == IGNORE).all()
    np.testing.assert_array_equal(kept[~padding], ignored[~padding])


@pytest.mark.parametrize("image_size", [(640, 427), (1024, 683)])
def test_defect_16_no_row_of_content_is_lost_to_rounding(image_size):
    """The image starts at row 3.98 of the canvas: row 3 shows a little of it, row 20 nothing."""
    content, floored = (
        one(np.ones((24, 24)), None, preset, image_size).content_mask[0]
        for preset in (DEFAULT, QWEN)
    )
    assert np.flatnonzero(content.all(axis=1)).tolist() == list(range(3, 20))
    assert np.flatnonzero(floored.any(axis=1)).tolist() == list(range(4, 20))
    assert not content[[2, 20]].any()


def test_defect_17_no_image_size_means_no_padding():
    assert one(np.ones((4, 4)), None, QWEN).content_mask.all()


def test_defect_17_default_box_is_not_grown_and_qwen_box_is():
    grounding = blob((12, 12), 4, 4, 6, 7)
    assert tuple(one(grounding).boxes[0]) == (4, 4, 7, 6)
    assert tuple(one(grounding, None, QWEN).boxes[0]) == (3, 3, 8, 7)
    corner = one(blob((12, 12), 0, 10, 1, 12), None, QWEN)
    assert tuple(corner.boxes[0]) == (9, 0, 12, 2)


# --- settings


def test_unknown_label_preset_is_named():
    with pytest.raises(ValueError, match="no label preset 'refrence'"):
        LabelSettings.preset("refrence")


def test_background_threshold_above_foreground_is_refused():
    with pytest.raises(ValueError, match="both background and foreground"):
        LabelSettings(foreground_ratio_threshold=0.1, background_ratio_threshold=0.2)


@settings(max_examples=200, deadline=None)
@given(IMAGE_SIZE, st.sampled_from([1.0, 1.5, 12.0]), st.integers(1, 20), st.integers(1, 20))
def test_padding_is_that_of_the_canvas_whatever_its_shape(image_size, max_ratio, height, width):
    """An image a little longer than InternVL takes lost all but a strip, as if of a square."""
    letterbox, grid = Letterbox.limited(image_size, max_ratio), GridShape(height, width)
    made = make_pseudo_labels(
        np.ones((1, *grid), np.float32), None, DEFAULT, np.array([letterbox.placement])
    )
    np.testing.assert_array_equal(made.content_mask[0], letterbox.content_mask(grid))
    if max_ratio == 1.0:
        alike = make_pseudo_labels(
            np.ones((1, *grid), np.float32), None, DEFAULT, np.array([image_size])
        )
        np.testing.assert_array_equal(made.content_mask, alike.content_mask)


@pytest.mark.parametrize("settings", [DEFAULT, QWEN])
def test_an_image_that_is_its_canvas_has_no_padding(settings: LabelSettings):
    grounding = np.random.default_rng(0).random((1, 8, 5), dtype=np.float32)
    placed = make_pseudo_labels(grounding, None, settings, np.array([[50, 80, 50, 80]]))
    plain = make_pseudo_labels(grounding, None, settings)
    np.testing.assert_array_equal(placed.labels, plain.labels)
    assert placed.content_mask.all()
