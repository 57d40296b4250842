"""Figures in both scoring modes, method by method, from a benchmark's rows and the predictions."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import polars as pl

from data_contracts.enums import Method, ScoringMode
from sdrpn_core.benchmarks import score

ACCURACY = "accuracy"
"""Figure of what is no public benchmark: the mean score."""

Figures = dict[str, float]
Answers = Sequence[tuple[str, Mapping[str, Any]]]


def mean_score(benchmark: str, answers: Answers, mode: str) -> Figures:
    """The figure of one's own questions; as ``aggregate`` of a public benchmark."""
    return {ACCURACY: fmean(score(benchmark, text, row, mode) for text, row in answers)}


def benchmark_figures(
    predictions: pl.DataFrame,
    documents: Mapping[str, Mapping[str, Any]],
    figures_of: Callable[[str, Answers, str], Figures],
) -> dict[Method, dict[ScoringMode, Figures]]:
    """Figures by name, as published and strict.

    Args:
        predictions: rows of ``prediction.v4`` of one benchmark.
        documents: question id -> the benchmark's row.
        figures_of: ``aggregate``, which names them as lmms-eval does, or ``mean_score``.
    """
    found = {}
    for method in Method:
        rows = predictions.filter(pl.col("method") == method.value).sort("question_id")
        answers = [
            (prediction.strip(), documents[question_id])
            for prediction, question_id in rows.select("prediction", "question_id").iter_rows()
        ]
        if answers:
            benchmark = rows["benchmark"][0]
            found[method] = {mode: figures_of(benchmark, answers, mode) for mode in ScoringMode}
    return found
