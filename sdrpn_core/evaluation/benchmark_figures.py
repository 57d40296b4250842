"""Figures of a public benchmark, method by method, from its rows and the predictions."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from data_contracts.enums import Method, ScoringMode
from sdrpn_core.benchmarks import aggregate

Figures = dict[str, float]


def benchmark_figures(
    predictions: pl.DataFrame, documents: Mapping[str, Mapping[str, Any]]
) -> dict[Method, dict[ScoringMode, Figures]]:
    """Figures under lmms-eval's names, as published and strict.

    Args:
        predictions: rows of ``prediction.v4`` of one benchmark.
        documents: question id -> the benchmark's row.
    """
    found = {}
    for method in Method:
        rows = predictions.filter(pl.col("method") == method.value).sort("question_id")
        answers = [
            (row["prediction"].strip(), documents[row["question_id"]])
            for row in rows.iter_rows(named=True)
        ]
        if answers:
            benchmark = rows["benchmark"][0]
            found[method] = {mode: aggregate(benchmark, answers, mode) for mode in ScoringMode}
    return found
