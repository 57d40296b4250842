"""What the gallery shows; maps, labels and boxes lie where they belong."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from data_contracts import registry
from data_contracts.enums import Method, RoiLabel
from data_contracts.method_names import METHOD_NAMES
from sdrpn_core.evaluation.prediction_rows import crops_of
from sdrpn_core.evaluation.results import summarize
from sdrpn_core.geometry import BoxXYXY, Letterbox
from sdrpn_core.regions import Region
from sdrpn_core.report import Example, Outcome, ReportData, render_report
from sdrpn_core.report.data import zoom_that_answers
from sdrpn_core.report.gallery import answered_examples, choose_questions, label_example
from sdrpn_core.report.overlay import (
    LABEL_COLOURS,
    draw_boxes,
    draw_heat_map,
    draw_labels,
    fade_hidden,
    relative_to_peak,
)
from sdrpn_core.report.pictures import pictures_of
from sdrpn_core.report.render import OUTCOME_NAMES
from tests.report_samples import FIND_REGIONS, LABELS, rpn_config, scene_predictions


def test_gallery_shows_failures_beside_wins() -> None:
    predictions, _ = scene_predictions(18)
    outcomes = [outcome for _, outcome in choose_questions(predictions, Method.SDRPN, 10)]
    assert len(outcomes) == 10
    assert {Outcome.WIN, Outcome.WRONG_REGION} <= set(outcomes)
    assert outcomes == sorted(outcomes, key=list(Outcome).index)
    assert max(map(outcomes.count, Outcome)) <= 10 - len(set(outcomes)) + 1
    assert choose_questions(predictions, Method.SDRPN, 0) == []
    assert len(choose_questions(predictions, Method.SDRPN, 1000)) == 18
    assert choose_questions(registry.empty_frame("prediction.v4"), Method.SDRPN, 5) == []


@pytest.mark.parametrize("is_withdrawn", [True, False])
def test_the_gallery_shows_the_zoom_that_the_page_stresses(is_withdrawn: bool) -> None:
    """With methods [base, sdrpn_withdrawn] there was none, and else it showed the other answers."""
    predictions, images = scene_predictions(18)
    regions = rpn_config().regions.with_changes(withdraw_image=is_withdrawn)
    rpn = rpn_config().model_copy(update={"regions": regions})
    ours, other = Method.SDRPN, Method.SDRPN_WITHDRAWN
    if is_withdrawn:
        ours, other = other, ours
    assert zoom_that_answers(rpn, set(predictions["method"])) is ours
    left = predictions.filter(pl.col("method") != ours.value)
    assert zoom_that_answers(rpn, set(left["method"])) is other
    found = answered_examples(left, images.__getitem__, FIND_REGIONS, LABELS, other, 18)
    assert len(found) == 18
    results = [summarize(left, num_bootstrap=1)]
    html = render_report(ReportData(title="demo", results=results, rpn=rpn, examples=found))
    assert f"<dt>{METHOD_NAMES[ours]}</dt>" not in html
    answers = re.findall(r'<dl class="answers">(.*?)</dl>', html, re.DOTALL)[::2]
    assert all(f"<dt>{METHOD_NAMES[other]}</dt>" in shown for shown in answers)


def test_a_crop_was_in_the_right_place_where_nobody_knows_the_place() -> None:
    predictions, _ = scene_predictions(18)
    right_place = "Both wrong, although the crop is in the right place"
    assert OUTCOME_NAMES[Outcome.RIGHT_REGION] == right_place
    unknown = predictions.with_columns(true_box=pl.lit(None, predictions.schema["true_box"]))
    outcomes = {outcome for _, outcome in choose_questions(unknown, Method.SDRPN, 18)}
    assert Outcome.BOTH_WRONG in outcomes
    assert not outcomes & {Outcome.WRONG_REGION, Outcome.RIGHT_REGION}


def test_label_example_of_a_sample_that_was_not_extracted() -> None:
    place = {"image_width": 40, "image_height": 20, "pad_left": 0, "pad_top": 10}
    label = {
        **place,
        "canvas_width": 40,
        "canvas_height": 40,
        "grid_height": 2,
        "grid_width": 2,
        "labels": [],
        "status": "not_extracted",
        "reason": "the first generated token ends the answer",
        "question": "what?",
        "answers": [],
        "dataset": "gqa",
        "image_uri": "a.png",
    }
    attention = {"grounding": None, "response": "", "grid_height": 2, "grid_width": 2}
    example = label_example(label, attention, lambda uri: Image.new("RGB", (40, 20)))
    assert "Rejected: the first generated token" in example.note
    assert len(pictures_of(example)) == 1


def white(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (255, 255, 255))


def test_heat_map_colours_exactly_the_pixels_of_a_cell() -> None:
    """A 100 x 50 picture on a 4 x 4 grid: padding is above and below, row 1 is its upper half."""
    values = np.zeros((4, 4), dtype=np.float32)
    values[1, 2] = 1.0
    drawn = np.asarray(draw_heat_map(white(100, 50), values, Letterbox.square((100, 50))))
    changed = (drawn != 255).any(axis=2)
    expected = np.zeros((50, 100), dtype=bool)
    expected[0:25, 50:75] = True
    np.testing.assert_array_equal(changed, expected)


def test_heat_map_follows_the_picture_at_any_scale() -> None:
    values = np.zeros((4, 4), dtype=np.float32)
    values[1, 2] = 1.0
    drawn = np.asarray(draw_heat_map(white(40, 20), values, Letterbox.square((100, 50))))
    changed = (drawn != 255).any(axis=2)
    assert changed[0:10, 20:30].all()
    assert changed.sum() == 100


def test_heat_in_the_padding_is_neither_drawn_nor_the_peak() -> None:
    letterbox = Letterbox.square((100, 50))
    values = np.full((4, 4), 0.1, dtype=np.float32)
    values[0, 0], values[2, 1] = 5.0, 0.2
    scaled = relative_to_peak(values, letterbox)
    assert scaled[0, 0] == 0.0
    assert scaled[2, 1] == 1.0
    assert scaled[1, 1] == pytest.approx(0.5)
    assert relative_to_peak(np.zeros((2, 2))).max() == 0.0


def test_labels_are_drawn_in_their_colours() -> None:
    labels = np.full((2, 2), int(RoiLabel.IGNORE), dtype=np.int8)
    labels[0, 0], labels[0, 1] = RoiLabel.FOREGROUND, RoiLabel.BACKGROUND
    drawn = np.asarray(draw_labels(white(20, 20), labels, Letterbox.square((20, 20))))
    for (y, x), label in (
        ((5, 5), RoiLabel.FOREGROUND),
        ((5, 15), RoiLabel.BACKGROUND),
        ((15, 5), RoiLabel.IGNORE),
    ):
        tint = 255 - drawn[y, x].astype(int)
        wanted = 255 - np.array(LABEL_COLOURS[label])
        assert tint.argmax() == wanted.argmax()


def test_boxes_are_outlined_where_they_are_and_the_picture_is_kept() -> None:
    picture = white(200, 100)
    box = BoxXYXY(40.0, 20.0, 80.0, 60.0)
    drawn = np.asarray(draw_boxes(picture, [box], (400, 200), (255, 0, 0)))
    assert (np.asarray(picture) == 255).all()
    ys, xs = np.nonzero((drawn == (255, 0, 0)).all(axis=2))
    assert abs(int(xs.min()) - 20) <= 2
    assert abs(int(xs.max()) - 39) <= 2
    assert abs(int(ys.min()) - 10) <= 2
    assert abs(int(ys.max()) - 29) <= 2
    assert (drawn[18:22, 28:32] == 255).all()


def test_corners_of_a_thick_outline_are_whole() -> None:
    """The rim was open there, and ends of the coloured lines stuck out of it."""
    box = BoxXYXY(300.0, 300.0, 900.0, 900.0)
    drawn = np.asarray(draw_boxes(white(1400, 1400), [box], (1400, 1400), (255, 0, 0)))
    ys, xs = np.nonzero((drawn != 255).any(axis=2))  # the rim is around all of it
    assert (drawn[ys.min(), xs.min() : xs.max() + 1] == 20).all()
    assert (drawn[ys.max(), xs.min() : xs.max() + 1] == 20).all()
    assert (drawn[ys.min() : ys.max() + 1, [xs.min(), xs.max()]] == 20).all()
    inside = drawn[ys.min() + 1 : ys.max(), xs.min() + 1 : xs.max()]
    assert (inside[:2] == (255, 0, 0)).all()
    assert (inside[:, -2:] == (255, 0, 0)).all()


def test_crop_picture_is_cut_from_a_smaller_copy_at_the_right_place() -> None:
    source = white(400, 200)
    source.paste((255, 0, 0), (100, 50, 200, 150))
    example = Example(
        image=source.resize((200, 100)),
        letterbox=Letterbox.square((400, 200)),
        question="what?",
        regions=(Region(BoxXYXY(110.0, 60.0, 190.0, 140.0)),),
    )
    caption = [picture.caption for picture in pictures_of(example)]
    assert caption == ["Picture", "Crop"]
    crop = pictures_of(example)[1]
    assert (crop.width, crop.height) == (200, 200)


def test_what_masks_leave_out_of_a_crop_is_pale_and_nothing_else() -> None:
    """A picture of half the size; the decoder never got what the crop showed beside the region."""
    source = Image.new("RGB", (200, 100), (200, 0, 0))
    region = Region(
        BoxXYXY(100, 40, 300, 160), (BoxXYXY(120, 60, 200, 100), BoxXYXY(120, 100, 160, 140))
    )
    drawn = np.asarray(fade_hidden(source, [region, Region(BoxXYXY(0, 0, 20, 20))], (400, 200)))
    is_pale = (drawn != (200, 0, 0)).any(axis=2)
    wanted = np.zeros((100, 200), np.bool_)
    wanted[20:80, 50:150] = True
    wanted[30:50, 60:100] = wanted[50:70, 60:80] = False
    np.testing.assert_array_equal(is_pale, wanted)
    assert (drawn[is_pale] > (199, 100, 100)).all()
    example = Example(
        image=source, letterbox=Letterbox.square((400, 200)), question="?", regions=(region,)
    )
    whole = replace(example, regions=(Region(region.box),))
    masked, unmasked = (pictures_of(each)[1] for each in (example, whole))
    assert (masked.caption, unmasked.caption) == ("Crop, pale outside the region", "Crop")
    assert masked.source != unmasked.source
    other = replace(example, regions=(region, Region(region.box)))
    assert pictures_of(other)[1].source == masked.source, "each crop is pale by its own region"
    assert pictures_of(other)[2].source == unmasked.source


def test_the_gallery_says_what_of_the_true_box_was_masked() -> None:
    predictions, images = scene_predictions(30)

    def upper_half(row: dict[str, Any]) -> tuple[Region, ...]:
        if row["true_box"] is None or not row["boxes"]:
            return ()
        x0, y0, x1, y1 = row["true_box"]
        (crop,) = crops_of(row)
        return (Region(crop, (BoxXYXY(x0, y0, x1, (y0 + y1) / 2),)),)

    examples = answered_examples(
        predictions, images.__getitem__, upper_half, LABELS, Method.SDRPN, 30
    )
    notes = [example.note for example in examples]
    assert "The crop holds 100% of the true box, the region 50%." in notes

    def all_of_it(row: dict[str, Any]) -> tuple[Region, ...]:
        return tuple(map(Region, crops_of(row)))

    examples = answered_examples(
        predictions, images.__getitem__, all_of_it, LABELS, Method.SDRPN, 30
    )
    assert "The crop holds 100% of the true box." in {example.note for example in examples}
