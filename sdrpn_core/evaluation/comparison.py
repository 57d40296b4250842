"""Results of several benchmarks -> one table beside the paper's figures."""

from collections.abc import Mapping

from data_contracts.comparison import Comparison, ComparisonRow, SweepPoint
from data_contracts.enums import BenchmarkTask, Method, ScoringMode
from data_contracts.results import Results
from sdrpn_core.benchmarks.paper import MAIN_FIGURES, PAPER_MODELS, paper_figure
from sdrpn_core.evaluation.benchmark_figures import ACCURACY


def compare(
    tables: Mapping[str, Results],
    sweeps: Mapping[tuple[str, float], Results],
    *,
    model: str,
    own_threshold: float,
    paper_model: str | None = None,
) -> Comparison:
    """Put tables side by side.

    Args:
        tables: name of the source (a task's name for public benchmarks) -> its results.
        sweeps: (name, region threshold) -> results with that threshold; they need SD-RPN only.
        model: name of the model's profile.
        own_threshold: that of ``tables``.
        paper_model: whose published figures to compare with; None takes the model's own.
    """
    known = paper_model or (model if model in PAPER_MODELS else None)
    order = [task.value for task in MAIN_FIGURES]
    names = sorted(
        tables, key=lambda name: (name in order, order.index(name) if name in order else 0)
    )
    return Comparison(
        model=model,
        paper_model=known,
        own_threshold=own_threshold,
        rows=tuple(
            _row(name, method, tables[name], known)
            for name in names
            for method in tables[name].methods
        ),
        sweep=tuple(
            _point(name, threshold, results)
            for (name, threshold), results in sorted(sweeps.items())
            if Method.SDRPN in results.methods
        ),
    )


def _row(name: str, method: Method, results: Results, paper_model: str | None) -> ComparisonRow:
    found = results.methods[method]
    figure, published = ACCURACY, found.accuracy.value
    strict = published  # of exact match, which has no figures, as both modes are the same
    if method in results.figures:
        modes = results.figures[method]
        if ACCURACY not in modes[ScoringMode.PUBLISHED]:
            figure = MAIN_FIGURES[BenchmarkTask(name)]
        published = modes[ScoringMode.PUBLISHED][figure]
        strict = modes[ScoringMode.STRICT][figure]
    paper = paper_figure(paper_model, method, name)
    return ComparisonRow(
        benchmark=name,
        figure=figure,
        method=method,
        num_documents=found.num_documents,
        published=100 * published,
        strict=100 * strict,
        paper=paper,
        difference=None if paper is None else 100 * published - paper,
        gain=found.gain,
        p_value=found.p_value,
        throughput=results.throughput(method),
    )


def _point(name: str, threshold: float, results: Results) -> SweepPoint:
    found = results.methods[Method.SDRPN]
    return SweepPoint(
        benchmark=name,
        threshold=threshold,
        accuracy=found.accuracy,
        box_recall=found.roi.box_recall if found.roi else None,
        mean_iou=found.roi.mean_iou if found.roi else None,
        crop_ratio=found.crop_ratio,
    )
