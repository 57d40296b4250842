"""The results table against values worked out by hand."""

import json
import tracemalloc
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_contracts import registry
from data_contracts.enums import Method
from data_contracts.label_settings import LabelSettings
from data_contracts.results import MethodSpeed, Results
from flows.outcome import RunOutcome
from sdrpn_core.evaluation.results import label_quality, summarize

# A 100 x 50 picture on a 4 x 4 grid of a 100 x 100 canvas: cells of 25 pixels, the picture in
# rows 1 and 2 (pad_top 25).
PLACE = {
    "grid_height": 4,
    "grid_width": 4,
    "image_width": 100,
    "image_height": 50,
    "pad_left": 0,
    "pad_top": 25,
    "canvas_width": 100,
    "canvas_height": 100,
}
TRUE_BOX = [25.0, 0.0, 50.0, 25.0]
"""Exactly the cell in row 1, column 1."""
PAIR = (Method.BASE, Method.SDRPN)
SETTINGS = LabelSettings(sink_threshold=1e-3, max_box_area_ratio=0.9)


def row(method: Method, question: int, *, score: float, **changes: Any) -> dict[str, Any]:
    return {
        "benchmark": "scenes",
        "method": method.value,
        "question_id": f"q{question}",
        "category": "sign" if question < 2 else "document",
        "kind": "natural",
        "image_uri": "scene.png",
        "question": "what?",
        "answers": ["x"],
        "prediction": "x",
        "score": score,
        "boxes": [],
        "num_crop_tokens": 0,
        "true_box": TRUE_BOX,
        "roi_map": None,
        "sink_map": None,
        **PLACE,
        **changes,
    }


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    schema = registry.empty_frame("prediction.v4").schema
    return registry.validate(pl.DataFrame(rows, schema=schema), "prediction.v4")


def speeds() -> dict[Method, MethodSpeed]:
    return {method: MethodSpeed(seconds_per_document=1.0, throughput=1.0) for method in Method}


def peak_at(row: int, column: int) -> list[float]:
    scores = np.full((4, 4), 0.1)
    scores[row, column] = 0.9
    return scores.ravel().tolist()


@pytest.mark.parametrize("true_box", [TRUE_BOX, None])
def test_maps_are_not_held_as_lists_of_numbers(true_box: list[float] | None) -> None:
    """A benchmark of ten thousand documents took gigabytes, with or without true boxes."""
    grid = {"grid_height": 40, "grid_width": 40, "true_box": true_box}
    maps = dict.fromkeys(("roi_map", "sink_map"), np.linspace(0, 1, 1600).tolist())
    rows = [row(Method.RAW_ATTENTION, n, score=1.0, **grid, **maps) for n in range(100)]
    predictions = frame(rows)
    tracemalloc.start()
    results = summarize(predictions, num_bootstrap=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (results.methods[Method.RAW_ATTENTION].roi is None) is (true_box is None)
    # What purity is computed from takes 5 bytes a cell, and as much again where it is joined.
    assert peak < 16 * 100 * 1600


def test_accuracy_gain_and_share() -> None:
    rows = [row(Method.BASE, i, score=float(i == 0)) for i in range(4)]
    rows += [row(Method.SDRPN, i, score=float(i < 2)) for i in range(4)]
    rows += [row(Method.ORACLE, i, score=float(i < 3)) for i in range(4)]
    results = summarize(frame(rows), num_bootstrap=50)
    assert list(results.methods) == [Method.BASE, Method.SDRPN, Method.ORACLE]
    base, zoomed = results.methods[Method.BASE], results.methods[Method.SDRPN]
    assert (base.accuracy.value, zoomed.accuracy.value) == (0.25, 0.5)
    assert base.gain is None
    assert zoomed.gain is not None
    assert zoomed.gain.value == 0.25
    assert zoomed.recovered_share is not None
    assert zoomed.recovered_share.value == pytest.approx(0.5)


def test_gain_compares_common_documents_only() -> None:
    """The oracle answers documents with a true box only; base is judged on those too."""
    rows = [row(Method.BASE, i, score=float(i == 3)) for i in range(4)]
    rows += [row(Method.ORACLE, i, score=1.0) for i in range(3)]
    results = summarize(frame(rows), num_bootstrap=50)
    oracle = results.methods[Method.ORACLE]
    assert oracle.num_documents == 3
    assert oracle.gain is not None
    assert oracle.gain.value == 1.0


def test_what_withdrawing_the_image_costs() -> None:
    """The whole zoom is right on 0, 1, 2; with the image withdrawn on 0 and 3, and 4 is missing."""
    rows = [row(Method.SDRPN, i, score=float(i < 3)) for i in range(5)]
    assert summarize(frame(rows)).withdrawal is None
    rows += [row(Method.SDRPN_WITHDRAWN, i, score=float(i in {0, 3})) for i in range(4)]
    found = summarize(frame(rows), num_bootstrap=50).withdrawal
    assert found is not None
    assert (found.difference.value, found.num_gained, found.num_lost) == (-0.25, 1, 2)
    assert found.difference.low < -0.25 < found.difference.high


def test_row_order_does_not_change_results() -> None:
    rows = [
        row(method, i, score=float((i * 7 + len(method)) % 3 == 0))
        for method in Method
        for i in range(9)
    ]
    assert summarize(frame(rows)) == summarize(frame(rows[::-1]))


def test_categories_cover_all_documents() -> None:
    rows = [row(m, i, score=float(i == 1)) for m in (Method.BASE, Method.SDRPN) for i in range(5)]
    document, sign = summarize(frame(rows), num_bootstrap=20).categories
    assert (document.category, document.num_documents) == ("document", 3)
    assert (sign.category, sign.num_documents) == ("sign", 2)
    assert sign.accuracy[Method.SDRPN].value == 0.5
    assert sign.box_recall == {Method.SDRPN: 0.0}


def test_region_quality_of_known_boxes() -> None:
    rows = [
        row(Method.SDRPN, 0, score=1.0, boxes=[TRUE_BOX], roi_map=peak_at(1, 1)),
        # Half of the true box: coverage 0.5, IoU 312.5 / 625.
        row(Method.SDRPN, 1, score=1.0, boxes=[[25.0, 0.0, 37.5, 25.0]], roi_map=peak_at(1, 1)),
        row(Method.SDRPN, 2, score=0.0, boxes=[[75.0, 25.0, 100.0, 50.0]], roi_map=peak_at(2, 3)),
        row(Method.SDRPN, 3, score=0.0, boxes=[], roi_map=peak_at(2, 2)),
    ]
    result = summarize(frame(rows), num_bootstrap=20).methods[Method.SDRPN]
    assert result.roi is not None
    assert result.crop_ratio == 0.75
    assert result.roi.box_recall == 0.5
    assert result.roi.box_recall_90 == 0.25
    assert result.roi.mean_iou == pytest.approx((1 + 0.5) / 4)
    assert result.roi.mean_coverage == pytest.approx(1.5 / 4)
    assert result.roi.pointing_accuracy == 0.5
    assert result.roi.no_crop_ratio == 0.25


def test_label_quality_step_by_step() -> None:
    """One true cell, one sink, one cell of padding: each step removes what it is for."""
    attention = np.zeros((4, 4))
    attention[1, 1], attention[2, 3], attention[0, 0], attention[1, 2] = 1.0, 0.9, 0.8, 0.15
    sink = np.zeros((4, 4))
    sink[2, 3] = 0.01
    raw = row(
        Method.RAW_ATTENTION,
        0,
        score=0.0,
        roi_map=attention.ravel().tolist(),
        sink_map=sink.ravel().tolist(),
    )
    steps = {step.step: step for step in label_quality([raw], SETTINGS)}
    assert list(steps) == ["threshold", "padding", "sinks", "ambiguity"]
    # Cells of pure padding are never counted, so masking them costs and gains nothing here.
    assert steps["threshold"].touch_precision == steps["padding"].touch_precision == 0.5
    assert steps["sinks"].touch_precision == 1.0
    assert steps["ambiguity"].touch_precision == steps["ambiguity"].recall == 1.0
    assert steps["ambiguity"].false_background == 0.0


def test_rejected_samples_lower_recall_but_not_that_of_labelled_ones() -> None:
    good, bad = np.zeros((4, 4)), np.zeros((4, 4))
    good[1, 1] = 1.0
    rows = [
        row(Method.RAW_ATTENTION, i, score=0.0, roi_map=values.ravel().tolist())
        for i, values in enumerate((good, bad))
    ]
    final = label_quality(rows, SETTINGS)[-1]
    assert (final.num_samples, final.num_labelled) == (2, 1)
    assert final.recall == 0.5
    assert final.labelled_recall == 1.0


def test_grids_and_missing_sinks_may_be_mixed() -> None:
    small = {"grid_height": 2, "grid_width": 2}
    rows = [
        row(Method.RAW_ATTENTION, 0, score=0.0, roi_map=peak_at(1, 1), sink_map=[0.0] * 16),
        row(Method.RAW_ATTENTION, 1, score=0.0, roi_map=peak_at(1, 1)),
        row(Method.RAW_ATTENTION, 2, score=0.0, roi_map=[0.9, 0.1, 0.1, 0.1], **small),
        row(Method.RAW_ATTENTION, 3, score=0.0, roi_map=None),
        row(Method.RAW_ATTENTION, 4, score=0.0, roi_map=peak_at(1, 1), true_box=None),
    ]
    assert label_quality(rows, SETTINGS)[-1].num_samples == 3


def test_no_documents() -> None:
    results = summarize(frame([]), SETTINGS)
    assert (results.num_documents, results.methods, results.labels) == (0, {}, ())
    assert results.summary()["accuracy"] == {}


def test_all_wrong() -> None:
    rows = [row(method, i, score=0.0) for method in Method for i in range(3)]
    results = summarize(frame(rows), SETTINGS, num_bootstrap=20)
    assert all(result.accuracy.high == 0.0 for result in results.methods.values())
    assert all(result.recovered_share is None for result in results.methods.values())
    assert results.methods[Method.SDRPN].roi is not None


def test_no_true_boxes() -> None:
    rows = [row(m, 0, score=1.0, true_box=None) for m in Method if m is not Method.ORACLE]
    results = summarize(frame(rows), SETTINGS, num_bootstrap=20)
    assert all(result.roi is None for result in results.methods.values())
    assert results.labels == ()
    assert results.summary()["roi"]["box_recall"] is None


def test_one_benchmark_at_a_time() -> None:
    rows = [row(Method.BASE, 0, score=1.0), row(Method.BASE, 0, score=1.0, benchmark="other")]
    with pytest.raises(ValueError, match="other, scenes"):
        summarize(frame(rows))


def test_results_round_trip_and_summary_keys() -> None:
    rows = [
        row(method, i, score=1.0, roi_map=peak_at(1, 1), boxes=[TRUE_BOX])
        for method in Method
        for i in range(2)
    ]
    results = summarize(frame(rows), SETTINGS, num_bootstrap=20)
    assert results.speed == {}, "speed is not a function of the predictions"
    results = results.model_copy(update={"speed": speeds()})
    assert Results.model_validate_json(results.model_dump_json()) == results
    stored = json.loads(results.model_dump_json())["labels"][0]
    assert stored["precision"] == results.labels[0].touch_precision, "as all results.v2 have it"
    assert "touch_precision" not in stored
    summary = json.loads(json.dumps(results.summary(), allow_nan=False))
    assert set(summary["accuracy"]) == {method.value for method in Method}
    assert summary["labels"]["precision"] == 1.0
    assert summary["labels"]["recall"] == 1.0
    assert summary["roi"]["box_recall"] == 1.0
    assert summary["throughput"]["base"] == 1.0


def test_answers_that_the_crop_spoils_are_named() -> None:
    """Base right, zoomed wrong: with the crop beside the true box, or in the right place."""
    rows = [row(Method.BASE, i, score=float(i != 3)) for i in range(4)]
    beside = [[75.0, 25.0, 100.0, 50.0]]
    crops = [[TRUE_BOX], beside, [TRUE_BOX], [TRUE_BOX]]
    scores = [1.0, 0.0, 0.0, 1.0]
    rows += [
        row(Method.SDRPN, i, score=score, boxes=boxes)
        for i, (score, boxes) in enumerate(zip(scores, crops, strict=True))
    ]
    changed = summarize(frame(rows), num_bootstrap=10).methods[Method.SDRPN].changed
    assert changed is not None
    assert (changed.num_gained, changed.num_lost, changed.num_lost_off_target) == (1, 2, 1)
    assert changed.lost == ("q1", "q2")


def test_purity_of_attention_by_threshold() -> None:
    """One cell inside the box at the peak, one outside at half of it, padding not counted."""
    attention = np.zeros((4, 4))
    attention[1, 1], attention[2, 3], attention[0, 0] = 0.4, 0.2, 9.0
    rows = [row(Method.RAW_ATTENTION, 0, score=0.0, roi_map=attention.ravel().tolist())]
    purity = {point.threshold: point for point in summarize(frame(rows)).purity}
    assert (purity[0.4].above_inside, purity[0.4].num_above) == (0.5, 2)
    assert (purity[0.5].above_inside, purity[0.5].num_above) == (1.0, 1)
    assert (purity[0.5].below_inside, purity[0.5].num_below) == (0.0, 7)
    assert summarize(frame([row(Method.BASE, 0, score=1.0)])).purity == ()


def test_significance_of_a_gain() -> None:
    sure = [row(m, i, score=float(m is Method.SDRPN)) for m in PAIR for i in range(40)]
    none = [row(m, i, score=float(i % 2 == (m is Method.BASE))) for m in PAIR for i in range(40)]
    values = [
        summarize(frame(rows), num_bootstrap=400).methods[Method.SDRPN].p_value
        for rows in (sure, none)
    ]
    assert values[0] == pytest.approx(2 / 401)
    assert values[1] is not None
    assert values[1] > 0.3


def test_own_questions_judged_by_a_benchmarks_rule_vanished_beside_that_benchmark() -> None:
    """Tables were told apart by the rule's name, which for some is the benchmark's too."""
    rows = [row(method, 0, score=1.0) | {"benchmark": "chartqa"} for method in PAIR]
    own = summarize(frame(rows), SETTINGS, num_bootstrap=10, seed=0)
    theirs = own.model_copy(update={"methods": {Method.BASE: own.methods[Method.BASE]}})
    outcome = RunOutcome(
        stages=(), results=own, evaluated="held_out", benchmarks={"chartqa": theirs}
    )
    (told,) = outcome.tables()["Regions against true boxes"]
    assert (told["benchmark"], told["method"]) == ("held_out", "sdrpn")
