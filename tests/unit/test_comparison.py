"""Benchmarks side by side: the right figure beside the paper's, in every format."""

import re
from typing import get_args

import numpy as np
import polars as pl
import pytest

from data_contracts.comparison import Comparison
from data_contracts.comparison_text import HEADINGS, sweep_rows, table_rows
from data_contracts.configs import PaperModel
from data_contracts.enums import BenchmarkTask, Method, ScoringMode
from data_contracts.results import (
    Interval,
    MethodResult,
    MethodSpeed,
    Results,
    RoiResult,
)
from sdrpn_core.benchmarks.paper import MAIN_FIGURES, PAPER_MODELS, paper_figure
from sdrpn_core.evaluation.benchmark_figures import benchmark_figures, mean_score
from sdrpn_core.evaluation.comparison import compare
from sdrpn_core.report.comparison import (
    speed_accuracy_charts,
    threshold_charts,
    to_html,
    to_latex,
    to_markdown,
)

ROI = RoiResult(
    num_documents=10,
    box_recall=0.8,
    box_recall_90=0.5,
    mean_iou=0.3,
    mean_coverage=0.7,
    pointing_accuracy=None,
    no_crop_ratio=0.1,
)


def results(benchmark: str, accuracy: dict[Method, float]) -> Results:
    base = accuracy.get(Method.BASE)
    figure = MAIN_FIGURES.get(BenchmarkTask(benchmark), "") if benchmark != "held_out" else ""
    modes = {
        method: {ScoringMode.PUBLISHED: {figure: value}, ScoringMode.STRICT: {figure: value / 2}}
        for method, value in accuracy.items()
    }
    return Results(
        benchmark=benchmark,
        num_documents=10,
        methods={
            method: MethodResult(
                num_documents=10,
                accuracy=Interval(value=value, low=value - 0.1, high=value + 0.1),
                gain=None
                if base is None or method is Method.BASE
                else Interval(value=value - base, low=value - base - 0.1, high=value - base + 0.1),
                p_value=None if method is Method.BASE else 0.01,
                recovered_share=None,
                crop_ratio=0.9,
                roi=ROI if method is Method.SDRPN else None,
            )
            for method, value in accuracy.items()
        },
        categories=(),
        labels=(),
        figures=modes if figure else {},
        speed={m: MethodSpeed(seconds_per_document=1.0, throughput=0.5) for m in accuracy},
    )


@pytest.fixture
def comparison() -> Comparison:
    pair = {Method.BASE: 0.4, Method.SDRPN: 0.6}
    tables = {name: results(name, pair) for name in ("vstar_bench", "held_out", "docvqa_val")}
    sweeps = {
        ("docvqa_val", threshold): results("docvqa_val", {Method.SDRPN: 0.5 + threshold / 10})
        for threshold in (0.3, 0.1)
    }
    return compare(tables, sweeps, model="llava-1.5-7b", own_threshold=0.2)


def test_figures_stand_beside_those_of_the_same_model_and_method(comparison: Comparison):
    assert [row.benchmark for row in comparison.rows[::2]] == [
        "held_out",
        "docvqa_val",
        "vstar_bench",
    ]
    own, document, zoomed = comparison.rows[0], comparison.rows[2], comparison.rows[3]
    assert (own.figure, own.paper, own.difference) == ("accuracy", None, None)
    assert (document.figure, document.published, document.strict) == ("anls", 40, 20)
    assert document.paper == 21.5
    assert document.difference == pytest.approx(18.5)
    assert zoomed.paper == 33.9
    assert zoomed.throughput == 0.5


def test_the_strict_score_of_ones_own_questions_is_not_the_published_one():
    """The published score stood in both columns."""
    own = results("held_out", {Method.BASE: 0.4})
    rows = pl.DataFrame(
        {
            "benchmark": "docvqa",
            "method": Method.BASE.value,
            "question_id": ["a", "b"],
            "prediction": ["abxx", "stop"],
        }
    )
    documents = {"a": {"answers": ["abcd"]}, "b": {"answers": ["stop"]}}
    figures = benchmark_figures(rows, documents, mean_score)
    table = compare(
        {"held_out": own.model_copy(update={"figures": figures})},
        {},
        model="reference",
        own_threshold=0.2,
    )
    assert [(row.figure, row.published, row.strict) for row in table.rows] == [("accuracy", 75, 50)]


def test_models_that_the_paper_does_not_know_have_no_difference():
    tables = {"pope": results("pope", {Method.BASE: 0.5})}
    plain = compare(tables, {}, model="reference", own_threshold=0.2)
    assert (plain.paper_model, plain.rows[0].paper) == (None, None)
    chosen = compare(tables, {}, model="reference", own_threshold=0.2, paper_model="qwen2.5-vl-7b")
    assert chosen.rows[0].paper == 86.7


def test_the_papers_tables_are_whole():
    assert set(MAIN_FIGURES) == set(BenchmarkTask)
    assert get_args(PaperModel) == PAPER_MODELS
    for model in PAPER_MODELS:
        for task in BenchmarkTask:
            base = paper_figure(model, Method.BASE, task.value)
            zoomed = paper_figure(model, Method.SDRPN, task.value)
            assert base is not None
            assert zoomed is not None
            assert 0 < base < zoomed <= 100, "the paper gains on every benchmark"
    averages = [
        np.mean([paper_figure("llava-1.5-7b", m, t.value) for t in list(MAIN_FIGURES)[:5]])
        for m in (Method.BASE, Method.VICROP, Method.SDRPN)
    ]
    assert averages == pytest.approx([27.5, 31.8, 34.3], abs=0.05), "as the paper's own column"


def test_every_figure_is_in_every_format(comparison: Comparison):
    markdown, latex, page = to_markdown(comparison), to_latex(comparison), to_html(comparison)
    for row in table_rows(comparison):
        for text in (row["published"], row["paper"], row["difference"], row["gain of score"]):
            assert f"| {text} |" in markdown
            assert f"<td>{text}</td>" in page
            assert f"& {text} " in latex or not text
    assert r"docvqa\_val" in latex
    widths = {line.count("&") for line in latex.splitlines() if line.endswith(r"\\")}
    assert widths == {len(HEADINGS) - 1}
    assert not re.search(r"(https?:)?//(?!www\.w3\.org)", page), "the page needs nothing else"


def test_a_sweep_has_its_table_and_plot(comparison: Comparison):
    assert [row["threshold"] for row in sweep_rows(comparison)] == ["0.1", "0.3"]
    [chart] = threshold_charts(comparison).values()
    assert "in the table: 0.2" in chart
    assert chart.count("polyline") == 3
    assert chart in to_html(comparison)
    without = comparison.model_copy(update={"sweep": ()})
    assert not threshold_charts(without)
    assert sweep_rows(without) == []
    assert "Region threshold" not in to_html(without)


def test_every_timed_method_is_a_named_point_of_the_speed_plot(comparison: Comparison):
    charts = speed_accuracy_charts(comparison)
    assert list(charts) == ["held_out", "docvqa_val", "vstar_bench"]
    chart = charts["docvqa_val"]
    assert chart.count("<circle") == 2
    assert ">Base model<" in chart
    assert ">SD-RPN<" in chart
    heights = [
        float(y)
        for y in re.findall(
            r'<text class="tick" x="[\d.]+" y="([\d.]+)" text-anchor="(?:start|end)">[A-Z]', chart
        )
    ]
    assert abs(heights[0] - heights[1]) >= 12, "names do not cover each other"
    assert to_html(comparison.model_copy(update={"sweep": ()})).count("<figure>") == len(charts)
    rows = [row.model_copy(update={"throughput": None}) for row in comparison.rows]
    untimed = comparison.model_copy(update={"sweep": (), "rows": tuple(rows)})
    assert "<figure>" not in to_html(untimed)
    assert chart in to_html(comparison)
