"""Prediction rows -> results table: accuracy, gains, RoI quality, label quality.

Everything is computed from ``prediction.v4`` rows alone, so that results can be made again, or of
several shards together, without running a model. Speed is in ``speed.py``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from data_contracts.enums import Method
from data_contracts.label_settings import LabelSettings
from data_contracts.results import (
    CategoryResult,
    Interval,
    LabelStepResult,
    MethodResult,
    Results,
    RoiResult,
    Withdrawal,
)
from sdrpn_core.evaluation.changed_answers import changed_answers
from sdrpn_core.evaluation.label_purity import label_purity
from sdrpn_core.evaluation.prediction_rows import (
    Row,
    crops_of,
    letterbox_of,
    map_of,
    rows_with_judged_maps,
    true_boxes_of,
)
from sdrpn_core.evaluation.roi_quality import (
    EMPTY_MASK_QUALITY,
    box_quality,
    mask_quality,
    points_inside,
)
from sdrpn_core.pseudo_labels import denoising_steps
from sdrpn_core.statistics import (
    Scores,
    difference_interval,
    difference_p_value,
    finite,
    mean_interval,
    recovered_share_interval,
)

ROI_METHODS = tuple(method for method in Method if method not in {Method.BASE, Method.ORACLE})
"""Methods whose crops are judged against the true boxes."""

RowsById = dict[str, Row]


def summarize(
    predictions: pl.DataFrame,
    label_settings: LabelSettings | None = None,
    *,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> Results:
    """Make the results table of one benchmark.

    Args:
        predictions: rows of ``prediction.v4``; may be empty, may lack methods or true boxes.
        label_settings: settings whose denoising steps are judged; None leaves label quality out.
        num_bootstrap: resamples per interval.
        seed: of the resampling.

    Raises:
        ValueError: if the rows are of several benchmarks.
    """
    benchmarks = predictions["benchmark"].unique().to_list()
    if len(benchmarks) > 1:
        raise ValueError(f"summarize one benchmark at a time, got {', '.join(sorted(benchmarks))}")
    rows = rows_with_judged_maps(predictions.sort("question_id"))
    by_method = _group_by_method(rows)
    settings = _Bootstrap(num_bootstrap, seed)
    raw = list(by_method.get(Method.RAW_ATTENTION, {}).values())
    return Results(
        benchmark=benchmarks[0] if benchmarks else "",
        num_documents=predictions["question_id"].n_unique(),
        methods={method: _method_result(method, by_method, settings) for method in by_method},
        categories=_category_results(rows, settings),
        labels=() if label_settings is None else label_quality(raw, label_settings),
        purity=label_purity(raw),
        withdrawal=_withdrawal(by_method, settings),
    )


class _Bootstrap:
    """How intervals are made, and rows turned into paired scores."""

    def __init__(self, num_resamples: int, seed: int) -> None:
        self._options = {"num_resamples": num_resamples, "seed": seed}

    def accuracy(self, rows: RowsById) -> Interval:
        """Mean score."""
        return mean_interval(_paired_scores(rows)[0], **self._options)

    def gain(self, rows: RowsById, base: RowsById) -> Interval | None:
        """Mean difference on common documents."""
        scores, baseline = _paired_scores(rows, base)
        return difference_interval(scores, baseline, **self._options) if len(scores) else None

    def p_value(self, rows: RowsById, base: RowsById) -> float | None:
        """Significance of the mean difference on common documents."""
        scores, baseline = _paired_scores(rows, base)
        return difference_p_value(scores, baseline, **self._options) if len(scores) else None

    def recovered_share(self, rows: RowsById, base: RowsById, oracle: RowsById) -> Interval | None:
        """Share of the oracle's gain on common documents."""
        scores, baseline, best = _paired_scores(rows, base, oracle)
        if not len(scores):
            return None
        return recovered_share_interval(scores, baseline, best, **self._options)


def _group_by_method(rows: Sequence[Row]) -> dict[Method, RowsById]:
    """Method -> question id -> row, methods in their canonical order."""
    groups = {
        method: {row["question_id"]: row for row in rows if row["method"] == method.value}
        for method in Method
    }
    return {method: group for method, group in groups.items() if group}


def _paired_scores(*groups: RowsById) -> tuple[Scores, ...]:
    """Scores of each group on the documents common to all, in the same order."""
    common = [key for key in groups[0] if all(key in group for group in groups)]
    return tuple(
        np.array([group[key]["score"] for key in common], dtype=np.float64) for group in groups
    )


def _method_result(
    method: Method, by_method: dict[Method, RowsById], bootstrap: _Bootstrap
) -> MethodResult:
    rows = by_method[method]
    base = None if method is Method.BASE else by_method.get(Method.BASE)
    oracle = by_method.get(Method.ORACLE)
    return MethodResult(
        num_documents=len(rows),
        accuracy=bootstrap.accuracy(rows),
        gain=bootstrap.gain(rows, base) if base else None,
        recovered_share=bootstrap.recovered_share(rows, base, oracle) if base and oracle else None,
        p_value=bootstrap.p_value(rows, base) if base else None,
        changed=changed_answers(rows, base) if base else None,
        crop_ratio=float(np.mean([len(row["boxes"]) > 0 for row in rows.values()])),
        roi=roi_quality_of(list(rows.values())) if method in ROI_METHODS else None,
    )


def _withdrawal(by_method: dict[Method, RowsById], bootstrap: _Bootstrap) -> Withdrawal | None:
    """Whether the cheaper way of zooming will do."""
    whole, withdrawn = (by_method.get(m) for m in (Method.SDRPN, Method.SDRPN_WITHDRAWN))
    if whole is None or withdrawn is None:
        return None
    difference = bootstrap.gain(withdrawn, whole)
    if difference is None:
        return None
    changed = changed_answers(withdrawn, whole)
    return Withdrawal(
        difference=difference, num_gained=changed.num_gained, num_lost=changed.num_lost
    )


def _category_results(rows: Sequence[Row], bootstrap: _Bootstrap) -> tuple[CategoryResult, ...]:
    results = []
    for category in sorted({row["category"] for row in rows}):
        members = [row for row in rows if row["category"] == category]
        by_method = _group_by_method(members)
        rois = {
            method: roi_quality_of(list(group.values()))
            for method, group in by_method.items()
            if method in ROI_METHODS
        }
        results.append(
            CategoryResult(
                category=category,
                num_documents=len({row["question_id"] for row in members}),
                accuracy={method: bootstrap.accuracy(g) for method, g in by_method.items()},
                box_recall={method: roi.box_recall for method, roi in rois.items() if roi},
            )
        )
    return tuple(results)


def roi_quality_of(rows: Sequence[Row]) -> RoiResult | None:
    """RoI quality of one method's rows; None if no row has a true box."""
    judged = [row for row in rows if row["true_box"] is not None]
    if not judged:
        return None
    found = [
        box_quality(crops_of(row), true_boxes_of(row), letterbox_of(row).image_size)
        for row in judged
    ]
    coverage = np.array([quality.coverage for quality in found])
    # Areas of sub-pixel pieces add up to within rounding of the whole.
    covered = coverage + 1e-9
    hits = [
        points_inside(map_of(row, "roi_map"), true_boxes_of(row), letterbox_of(row))
        for row in judged
        if row["roi_map"] is not None
    ]
    return RoiResult(
        num_documents=len(judged),
        box_recall=float(np.mean(covered >= 0.5)),
        box_recall_90=float(np.mean(covered >= 0.9)),
        mean_iou=float(np.mean([quality.iou for quality in found])),
        mean_coverage=float(np.mean(coverage)),
        pointing_accuracy=float(np.mean(hits)) if hits else None,
        no_crop_ratio=sum(not row["boxes"] for row in judged) / len(judged),
    )


def label_quality(rows: Sequence[Row], settings: LabelSettings) -> tuple[LabelStepResult, ...]:
    """Foreground and background against true boxes after each denoising step.

    Args:
        rows: with ``roi_map`` (raw grounding attention), ``sink_map`` or null, ``true_box`` and the
            letterbox; rows without a map or true box are left out.
        settings: of label making.
    """
    judged = [row for row in rows if row["true_box"] is not None and row["roi_map"] is not None]
    steps: dict[str, list[tuple[Row, np.ndarray[Any, Any], np.ndarray[Any, Any]]]] = {}
    for group in _group_by_maps(judged):
        has_sink = group[0]["sink_map"] is not None
        found = denoising_steps(
            np.stack([map_of(row, "roi_map") for row in group]),
            np.stack([map_of(row, "sink_map") for row in group]) if has_sink else None,
            settings,
            np.array([letterbox_of(row).placement for row in group]),
        )
        for step in found:
            masks = zip(group, step.foreground, step.background, strict=True)
            steps.setdefault(step.name, []).extend(masks)
    return tuple(_label_step(name, samples) for name, samples in steps.items())


def _group_by_maps(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that can be stacked: same grid, all with or all without a sink map."""
    groups: dict[tuple[int, int, bool], list[Row]] = {}
    for row in rows:
        key = (row["grid_height"], row["grid_width"], row["sink_map"] is None)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _label_step(name: str, samples: Sequence[tuple[Row, Any, Any]]) -> LabelStepResult:
    foreground = background = labelled = EMPTY_MASK_QUALITY
    for row, foreground_mask, background_mask in samples:
        true_boxes, letterbox = true_boxes_of(row), letterbox_of(row)
        quality = mask_quality(foreground_mask, true_boxes, letterbox)
        foreground += quality
        background += mask_quality(background_mask, true_boxes, letterbox)
        if foreground_mask.any():
            labelled += quality
    return LabelStepResult(
        step=name,
        num_samples=foreground.num_samples,
        num_labelled=labelled.num_samples,
        touch_precision=finite(foreground.touch_precision),
        centre_precision=finite(foreground.centre_precision),
        recall=finite(foreground.recall),
        false_background=finite(background.centre_precision),
        labelled_recall=finite(labelled.recall),
    )
