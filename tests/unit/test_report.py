"""The page is whole, self-contained and honest."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from data_contracts.enums import Method
from data_contracts.method_names import METHOD_NAMES
from data_contracts.results import Results
from sdrpn_core.geometry import Letterbox
from sdrpn_core.report import Example, GivenAnswer, ReportData, render_report
from sdrpn_core.report.charts import Bar, Series, bar_chart, line_chart, ticks
from sdrpn_core.report.pictures import pictures_of
from tests.report_samples import full_report

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
