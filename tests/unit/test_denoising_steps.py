"""Labels step by step, and which regions are kept: the strongest, without rivals."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from data_contracts.enums import LabelStatus
from data_contracts.label_settings import LabelSettings
from sdrpn_core.pseudo_labels import denoising_steps, foreground_cells, make_pseudo_labels
from tests.label_samples import (
    BACKGROUND,
    DEFAULT,
    FOREGROUND,
    IGNORE,
    IMAGE_SIZE,
    blob,
    one,
    samples,
)

# --- denoising steps


def test_denoising_steps_add_up():
    grounding = blob((12, 12), 5, 5, 7, 7, 0.5)
    grounding[0, 3] = 1.0  # padding
    grounding[6, 11] = 0.8  # sink
    grounding[8, 8] = 0.08  # ambiguous
    sink = np.zeros((12, 12), np.float32)
    sink[6, 11] = 1.0
    steps = list(denoising_steps(grounding[None], sink[None], DEFAULT, np.array([[120, 60]])))
    assert [step.name for step in steps] == ["threshold", "padding", "sinks", "ambiguity"]
    assert [int(step.foreground.sum()) for step in steps] == [6, 5, 4, 4]
    assert not any((step.foreground & step.background).any() for step in steps)
    assert all((step.foreground | step.background).all() for step in steps[:3])
    assert not steps[3].background[0, 8, 8]


def test_only_the_last_denoising_step_rejects():
    steps = list(denoising_steps(np.ones((1, 4, 4)), None, DEFAULT))
    assert [int(step.foreground.sum()) for step in steps] == [16, 16, 16, 0]
    assert not steps[3].background.any()


@settings(max_examples=50, deadline=None)
@given(samples(), IMAGE_SIZE)
def test_last_denoising_step_is_the_label(sample, image_size):
    grounding, sink = (array[None] for array in sample)
    sizes = np.array([image_size])
    *_, sinks, last = denoising_steps(grounding, sink, DEFAULT, sizes)
    result = make_pseudo_labels(grounding, sink, DEFAULT, sizes)
    np.testing.assert_array_equal(last.foreground, result.labels == FOREGROUND)
    if result.status[0] == LabelStatus.OK:
        np.testing.assert_array_equal(sinks.foreground, last.foreground)


# --- strongest region


def test_only_the_region_of_the_maximum_is_kept():
    """A second region is neither foreground nor background: it is ignored."""
    grounding = blob((12, 12), 1, 1, 3, 3, 1.0)
    grounding += blob((12, 12), 8, 8, 10, 11, 0.9)
    grounding[3, 3] = 0.5  # touches the first region at a corner
    any_size = DEFAULT.model_copy(update={"max_box_area_ratio": 1.0})
    one_region = any_size.model_copy(update={"strongest_region_only": True})
    both, kept = one(grounding, None, any_size), one(grounding, None, one_region)
    assert int(both.num_foreground[0]) == 11
    expected = np.zeros((12, 12), bool)
    expected[1:3, 1:3] = expected[3, 3] = True
    np.testing.assert_array_equal(kept.labels[0] == FOREGROUND, expected)
    assert (kept.labels[0, 8:10, 8:11] == IGNORE).all()
    assert tuple(kept.boxes[0]) == (1, 1, 4, 4)
    assert (kept.labels[0, 5:8] == BACKGROUND).all()


@settings(max_examples=50, deadline=None)
@given(samples())
def test_strongest_region_is_scipys_component_of_the_maximum(sample):
    grounding = sample[0]
    settings_ = LabelSettings(sink_threshold=None, max_box_area_ratio=1.0)
    every = foreground_cells(grounding[None], None, settings_)[0]
    only = settings_.model_copy(update={"strongest_region_only": True})
    found = foreground_cells(grounding[None], None, only)[0]
    components, _ = ndimage.label(every, np.ones((3, 3)))
    peaks = np.unique(components[every & (grounding == grounding.max())])
    np.testing.assert_array_equal(found, np.isin(components, peaks[peaks > 0]))


# --- rival regions


def test_a_rival_region_within_the_ratio_makes_a_sample_ambiguous():
    """At the ratio is too close; touching the strongest region is no rivalry."""
    grounding = blob((12, 12), 1, 1, 3, 3, 1.0)
    grounding[3, 3] = 0.9  # touches the strongest region at a corner
    grounding += blob((12, 12), 8, 8, 10, 11, 0.5)
    for ratio, status in ((0.5, LabelStatus.AMBIGUOUS), (0.51, LabelStatus.OK)):
        strict = DEFAULT.model_copy(update={"max_rival_ratio": ratio, "max_box_area_ratio": 1.0})
        result = one(grounding, None, strict)
        assert result.status == (status,)
        assert (result.labels == IGNORE).all() == (status == LabelStatus.AMBIGUOUS)
        assert result.boxes[0, 0] >= 0, "a rejected sample keeps its box, to show why"


@settings(max_examples=50, deadline=None)
@given(samples(), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_rivals_are_scipys_other_components(sample, ratio):
    grounding = sample[0]
    lenient = LabelSettings(sink_threshold=None, max_box_area_ratio=1.0)
    strict = lenient.model_copy(update={"max_rival_ratio": ratio})
    every = foreground_cells(grounding[None], None, lenient)[0]
    components, _ = ndimage.label(every, np.ones((3, 3)))
    strongest = components[every & (grounding == grounding.max())][:1]
    rivals = grounding[every & ~np.isin(components, strongest)].astype(np.float64)
    before, after = one(grounding, None, lenient).status[0], one(grounding, None, strict).status[0]
    is_rivalled = rivals.max(initial=0.0) >= ratio * float(grounding.max()) and rivals.size > 0
    rejected = before == LabelStatus.OK and is_rivalled
    assert after == (LabelStatus.AMBIGUOUS if rejected else before)


def test_regions_that_share_the_maximum_are_rivals():
    """Neither was outside the strongest regions, so a sample as ambiguous as can be passed."""
    grounding = blob((12, 12), 1, 1, 3, 3) + blob((12, 12), 8, 8, 10, 11)
    strict = DEFAULT.model_copy(update={"max_rival_ratio": 1.0, "max_box_area_ratio": 1.0})
    assert one(grounding, None, strict).status == (LabelStatus.AMBIGUOUS,)
    assert one(blob((12, 12), 1, 1, 3, 3), None, strict).status == (LabelStatus.OK,)


def test_rejection_of_rivals_is_a_denoising_step_of_its_own():
    grounding = blob((8, 8), 0, 0, 2, 2, 1.0) + blob((8, 8), 5, 5, 7, 7, 0.8)
    strict = DEFAULT.model_copy(update={"max_rival_ratio": 0.5, "max_box_area_ratio": 1.0})
    *_, ambiguity, rivals = denoising_steps(grounding[None], None, strict)
    assert (ambiguity.name, rivals.name) == ("ambiguity", "rivals")
    assert ambiguity.foreground.sum() == 8
    assert not rivals.foreground.any()
    assert not rivals.background.any()


def test_denoising_passes_over_rules_that_are_off():
    off = DEFAULT.model_copy(
        update={"mask_padding": False, "sink_threshold": None, "strongest_region_only": True}
    )
    steps = denoising_steps(blob((8, 8), 2, 2, 4, 4)[None], None, off)
    assert [step.name for step in steps] == ["threshold", "region", "ambiguity"]
    border = off.model_copy(update={"border_cells": 1})
    steps = denoising_steps(blob((8, 8), 0, 0, 2, 2)[None], None, border)
    found = {step.name: int(step.foreground.sum()) for step in steps}
    assert found == {"threshold": 4, "sinks": 1, "region": 1, "ambiguity": 1}
