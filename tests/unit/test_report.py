"""The page is whole, self-contained and honest; maps and boxes lie where they belong."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from PIL import Image

from data_contracts import registry
from data_contracts.enums import Method, RoiLabel
from data_contracts.method_names import METHOD_NAMES
from data_contracts.results import Results
from sdrpn_core.evaluation.prediction_rows import crops_of
from sdrpn_core.geometry import BoxXYXY, Letterbox
from sdrpn_core.regions import Region
from sdrpn_core.report import Example, GivenAnswer, Outcome, ReportData, render_report
from sdrpn_core.report.charts import Bar, Series, bar_chart, line_chart, ticks
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
from tests.report_samples import LABELS, full_report, scene_predictions

SECTIONS = [
    "results",
    "categories",
    "speed",
    "roi",
    "labels",
    "training",
    "threshold",
    "gallery",
    "run",
]
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting while it collects ids, links, images and table headers."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        self.links += [str(values[name]) for name in ("src", "href") if values.get(name)]
        if tag == "img":
            self.images.append(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"


@pytest.fixture(scope="module")
def report() -> ReportData:
    return full_report(count=12, num_examples=4)


@pytest.fixture(scope="module")
def html(report: ReportData) -> str:
    return render_report(report)


def test_page_is_well_formed_with_every_section(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)
    assert len(page.ids) == len(set(page.ids))
    targets = {link[1:] for link in page.links if link.startswith("#")}
    assert targets == set(SECTIONS)
    assert 'class="missing"' not in html


def test_threshold_and_calibration_are_called_what_they_are(html: str) -> None:
    """The threshold is the best F2's, and scores are used after Platt scaling."""
    assert "best F2" in html
    assert "best F1" not in html
    assert ">Calibration error after Platt scaling</th><td>0.004<" in html


def test_a_threshold_that_is_not_the_rpns_own_is_told(report: ReportData, html: str) -> None:
    """The page named the RPN's threshold while its answers were given with another."""
    told = "answered with a region threshold of 0.3, as the configuration says"
    assert "answered with a region threshold" not in html
    assert render_report(replace(report, answered_threshold=0.5)) == html, "it is its own"
    page = render_report(replace(report, answered_threshold=0.3))
    assert page.count(told) == 2, "beside the results and beside the RPN's own"
    assert "the RPN's own is 0.5" in page


def test_precision_of_labels_says_which_cells_count(report: ReportData, html: str) -> None:
    """The page's "precision" counted cells that touch the box, calibration's those inside it."""
    table = html.split("Label quality after each denoising step", 1)[1].split("</table>", 1)[0]
    headings = re.findall(r'<th scope="col">([^<]*)</th>', table)
    assert headings[:3] == ["Step", "Touch precision", "Centre precision"]
    (results,) = report.results
    last = results.labels[-1]
    assert last.touch_precision != last.centre_precision
    shown = [f"{100 * (value or 0):.1f}" for value in (last.touch_precision, last.centre_precision)]
    assert re.findall("<td>([^<]*)</td>", table.split('class="ours"')[1])[:2] == shown
    assert "Touch precision of the labels after each denoising step" in html


def test_the_page_stresses_the_zoom_that_answering_is_set_to(report: ReportData) -> None:
    """A run that withdraws the image showed the speed of the zoom that it does not use."""
    assert report.rpn is not None
    (results,) = report.results
    for is_withdrawn, method in ((False, Method.SDRPN), (True, Method.SDRPN_WITHDRAWN)):
        regions = report.rpn.regions.with_changes(withdraw_image=is_withdrawn)
        rpn = report.rpn.model_copy(update={"regions": regions})
        html = render_report(replace(report, rpn=rpn))
        rows = re.findall('<tr class="ours"><th scope="row">([^<]*)<', html)
        assert set(rows) & set(METHOD_NAMES.values()) == {METHOD_NAMES[method]}
        speed = results.speed[method].throughput
        tile = f"<strong>{speed:.2f}\N{MULTIPLICATION SIGN}</strong><span>speed</span>"
        assert tile in html, method


@pytest.mark.parametrize("is_withdrawn", [True, False])
def test_the_page_stresses_the_zoom_that_was_evaluated(
    report: ReportData, is_withdrawn: bool
) -> None:
    """With an RPN that withdraws the image and methods [base, sdrpn], accuracy, gain and speed were
    missing from the key figures."""
    assert report.rpn is not None
    (results,) = report.results
    kept = Method.SDRPN if is_withdrawn else Method.SDRPN_WITHDRAWN
    methods = {m: found for m, found in results.methods.items() if m in {Method.BASE, kept}}
    regions = report.rpn.regions.with_changes(withdraw_image=is_withdrawn)
    html = render_report(
        replace(
            report,
            rpn=report.rpn.model_copy(update={"regions": regions}),
            results=[results.model_copy(update={"methods": methods})],
        )
    )
    accuracy = f"{100 * methods[kept].accuracy.value:.1f} %"
    assert f"<strong>{accuracy}</strong><span>accuracy with SD-RPN</span>" in html
    assert f'<tr class="ours"><th scope="row">{METHOD_NAMES[kept]}<' in html


def test_page_says_what_withdrawing_the_image_costs(report: ReportData, html: str) -> None:
    (results,) = report.results
    cost = results.withdrawal
    assert cost is not None
    slower, faster = (results.speed[m].throughput for m in ("sdrpn", "sdrpn_withdrawn"))
    assert slower is not None
    assert faster is not None
    sentence = re.search(
        "SD-RPN is ([0-9.]+)\N{MULTIPLICATION SIGN} as fast, and its accuracy .*", html
    )
    assert sentence is not None
    assert float(sentence[1]) == pytest.approx(faster / slower, abs=0.005)
    changed = f"withdrawn: {cost.num_gained}; only with it in view: {cost.num_lost}."
    assert changed in sentence[0]


def test_page_needs_nothing_from_outside(html: str) -> None:
    page = Page(html)
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert not re.search(r"url\(|@import|<script|<link", html)
    assert len(html) < 1_000_000


def test_page_is_accessible(html: str) -> None:
    page = Page(html)
    assert len(page.images) >= 4 * 4
    assert all(image["alt"] for image in page.images)
    assert page.tags.count("caption") == page.tags.count("table")
    assert page.tags.count("svg") == len(re.findall(r'role="img" aria-label="[^"]+"', html))
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_charts_are_valid_xml(html: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    assert len(charts) == 6
    for chart in charts:
        ElementTree.fromstring(chart)


def test_page_is_the_same_every_time(report: ReportData, html: str) -> None:
    assert render_report(report) == html


def test_page_of_nothing_says_what_is_missing() -> None:
    html = render_report(ReportData(title="empty"))
    for missing in (
        "No evaluation was part",
        "No true boxes",
        "No RPN was trained",
        "No artifacts",
    ):
        assert missing in html


def test_page_without_an_evaluation_has_no_empty_sections(report: ReportData) -> None:
    """The menu led to five sections that said nothing but that an evaluation is missing."""
    page = Page(render_report(replace(report, results=[], examples=[])))
    assert page.open == []
    there = ["labels", "training", "threshold", "run"]
    assert [name for name in page.ids if name in SECTIONS] == there
    assert [link[1:] for link in page.links if link.startswith("#")] == ["labels", *there]


def test_page_without_documents() -> None:
    results = Results(benchmark="scenes", num_documents=0, methods={}, categories=(), labels=())
    html = render_report(ReportData(title="empty", results=[results]))
    assert "The evaluation had no documents that its methods could answer." in html
    assert html.count("There are no answers.") == 2  # by category, and how fast


def test_page_of_labels_only(report: ReportData) -> None:
    example = replace(report.examples[0], given={}, outcome=None, roi_map=None, regions=())
    html = render_report(
        ReportData(title="labels", label_counts={"ok": 1}, label_examples=[example])
    )
    assert html.count("<img ") == 3
    assert "No evaluation was part of this run" in html


def test_page_without_true_boxes() -> None:
    example = Example(
        image=Image.new("RGB", (30, 20)), letterbox=Letterbox.square((30, 20)), question="what?"
    )
    html = render_report(ReportData(title="own pictures", examples=[example]))
    assert html.count("<img ") == 1


def test_questions_without_categories_had_a_table_of_none(report: ReportData) -> None:
    (results,) = report.results
    alike = results.categories[0].model_copy(update={"category": ""})
    plain = results.model_copy(update={"categories": (alike,)})
    told = "The questions are of no categories."
    assert told in render_report(replace(report, results=[plain]))
    assert told not in render_report(report)


def test_a_picture_of_much_grain_ended_the_page() -> None:
    """ "Broken data stream when writing image file"."""
    grain = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    image = Image.fromarray(grain)
    example = Example(image=image, letterbox=Letterbox.square(image.size), question="what?")
    assert [picture.width for picture in pictures_of(example)] == [400]


def test_texts_are_escaped(report: ReportData) -> None:
    """Answers come from a model and questions from a data set: both are only text."""
    evil = '<script>alert("x")</script>'
    example = replace(
        report.examples[0],
        question=evil,
        answers=(evil,),
        note=evil,
        given={Method.BASE: GivenAnswer(evil, 0.0)},
    )
    html = render_report(
        ReportData(title=evil, facts=[(evil, evil)], examples=[example], config={"a": evil})
    )
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    Page(html)


def test_gallery_shows_failures_beside_wins() -> None:
    predictions, _ = scene_predictions(18)
    outcomes = [outcome for _, outcome in choose_questions(predictions, 10)]
    assert len(outcomes) == 10
    assert {Outcome.WIN, Outcome.WRONG_REGION} <= set(outcomes)
    assert outcomes == sorted(outcomes, key=list(Outcome).index)
    assert max(map(outcomes.count, Outcome)) <= 10 - len(set(outcomes)) + 1
    assert choose_questions(predictions, 0) == []
    assert len(choose_questions(predictions, 1000)) == 18
    assert choose_questions(registry.empty_frame("prediction.v4"), 5) == []


def test_a_crop_was_in_the_right_place_where_nobody_knows_the_place() -> None:
    predictions, _ = scene_predictions(18)
    right_place = "Both wrong, although the crop is in the right place"
    assert OUTCOME_NAMES[Outcome.RIGHT_REGION] == right_place
    unknown = predictions.with_columns(true_box=pl.lit(None, predictions.schema["true_box"]))
    outcomes = {outcome for _, outcome in choose_questions(unknown, 18)}
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

    examples = answered_examples(predictions, images.__getitem__, upper_half, LABELS, 30)
    notes = [example.note for example in examples]
    assert "The crop holds 100% of the true box, the region 50%." in notes

    def all_of_it(row: dict[str, Any]) -> tuple[Region, ...]:
        return tuple(map(Region, crops_of(row)))

    examples = answered_examples(predictions, images.__getitem__, all_of_it, LABELS, 30)
    assert "The crop holds 100% of the true box." in {example.note for example in examples}


def test_line_chart_places_points_and_survives_flat_data() -> None:
    flat = line_chart(
        [Series("a", [(1.0, 0.0)]), Series("b", [])], title="t", x_label="x", y_label="y"
    )
    ElementTree.fromstring(flat)
    assert flat.count("<circle") == 1
    assert line_chart([Series("a", [])], title="t", x_label="x", y_label="y") == ""
    chart = line_chart([Series("a", [(0.0, 0.0), (1.0, 1.0)])], title="t", x_label="x", y_label="y")
    points = re.search(r'<polyline[^>]*points="([^"]+)"', chart)
    assert points is not None
    (x0, y0), (x1, y1) = (map(float, pair.split(",")) for pair in points[1].split())
    assert x0 < x1
    assert y0 > y1


def test_bar_chart_lengths_are_in_proportion() -> None:
    chart = bar_chart([Bar("a", 1.0, "1"), Bar("b", 0.25, "<b>", 0.1, 0.4)], title="t")
    ElementTree.fromstring(chart)
    long, short = (float(w) for w in re.findall(r'<rect[^>]*width="([\d.]+)"', chart))
    assert short / long == pytest.approx(0.25, abs=0.01)
    assert chart.count("whisker") == 1
    assert bar_chart([], title="t") == ""
    ElementTree.fromstring(bar_chart([Bar("a", 0.0, "0")], title="t"))


def test_the_longest_label_of_a_bar_is_not_cut_off() -> None:
    """Of "ViCrop, pure-grad, high-res" a chart showed the end only."""
    longest = max(METHOD_NAMES.values(), key=len)
    chart = bar_chart([Bar("a", 1.0, "1"), Bar(longest, 0.5, "2")], title="t")
    ends = {float(x) for x in re.findall(r'class="bar-label" x="([\d.]+)"', chart)}
    assert len(ends) == 1
    assert ends.pop() >= 6.5 * len(longest)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.037), (5.0, 1200.0), (-1.0, 1.0)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 7
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    assert len({round(b - a, 9) for a, b in pairwise(found)}) == 1
