"""Figures in both scoring modes, method by method, from a benchmark's rows and the predictions."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import polars as pl

from data_contracts.enums import Method, ScoringMode
from sdrpn_core.benchmarks import aggregate, score

ACCURACY = "accuracy"
"""Figure of what is no public benchmark: the mean score."""

Figures = dict[str, float]
Documents = Mapping[str, Mapping[str, Any]]
Answers = Sequence[tuple[str, Mapping[str, Any]]]


def benchmark_figures(
    predictions: pl.DataFrame, documents: Documents
) -> dict[Method, dict[ScoringMode, Figures]]:
    """Figures of a public benchmark under lmms-eval's names, as published and strict.

    Args:
        predictions: rows of ``prediction.v4`` of one benchmark.
        documents: question id -> the benchmark's row.
    """
    return _figures(predictions, documents, aggregate)


def mean_scores(
    predictions: pl.DataFrame, documents: Documents
) -> dict[Method, dict[ScoringMode, Figures]]:
    """The mean score of one's own questions, as published and strict; arguments as above."""
    return _figures(predictions, documents, _mean_score)


def _mean_score(benchmark: str, answers: Answers, mode: str) -> Figures:
    return {ACCURACY: fmean(score(benchmark, text, row, mode) for text, row in answers)}


def _figures(
    predictions: pl.DataFrame,
    documents: Documents,
    figures_of: Callable[[str, Answers, str], Figures],
) -> dict[Method, dict[ScoringMode, Figures]]:
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
