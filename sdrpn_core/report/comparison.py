"""A comparison as Markdown, LaTeX and one HTML page with its plots."""

from collections.abc import Sequence

from markupsafe import Markup

from data_contracts.comparison import Comparison, ComparisonRow
from data_contracts.comparison_text import HEADINGS, sweep_rows, table_rows
from data_contracts.enums import Method
from data_contracts.method_names import METHOD_NAMES
from sdrpn_core.report.charts import Point, Series, line_chart, point_chart
from sdrpn_core.report.pages import markdown_table, render_page

_LATEX_SPECIAL = str.maketrans(
    {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "\N{MINUS SIGN}": "$-$"}
)


def to_markdown(comparison: Comparison) -> str:
    """Tables for a README or an issue."""
    parts = [caption(comparison), markdown_table(table_rows(comparison))]
    if comparison.sweep:
        own = f"Region threshold of SD-RPN (in the table above: {comparison.own_threshold:g})."
        parts += [own, markdown_table(sweep_rows(comparison))]
    return "\n\n".join(parts) + "\n"


def to_latex(comparison: Comparison) -> str:
    """A ``tabular`` for a paper; needs the package booktabs."""
    rows = table_rows(comparison)
    kept = [name for name in HEADINGS if any(row[name] for row in rows)]
    lines = [
        f"% {caption(comparison)}",
        rf"\begin{{tabular}}{{lll{'r' * (len(kept) - 3)}}}",
        r"\toprule",
        _latex_line(kept),
    ]
    previous = None
    for row in rows:
        if row["benchmark"] != previous:
            lines.append(r"\midrule")
        previous = row["benchmark"]
        lines.append(_latex_line([row[name] for name in kept]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_html(comparison: Comparison) -> str:
    """One page that needs nothing else."""
    return render_page(
        "comparison.html.j2",
        caption=caption(comparison),
        tables=[table_rows(comparison), sweep_rows(comparison)],
        speed_charts=speed_accuracy_charts(comparison),
        threshold_charts=threshold_charts(comparison),
        own_threshold=comparison.own_threshold,
        ours=METHOD_NAMES[Method.SDRPN],
    )


def caption(comparison: Comparison) -> str:
    """What the table shows, in a sentence or two."""
    beside = (
        f"beside the paper's figures for {comparison.paper_model}"
        if comparison.paper_model
        else "the paper has no figures for this model"
    )
    return (
        f"{comparison.model}, in per cent; {beside}. Gains are of the mean score over base on the "
        "same documents, in points, with a paired bootstrap."
    )


def speed_accuracy_charts(comparison: Comparison) -> dict[str, Markup]:
    """Benchmark -> plot with a point per way of answering that was timed."""
    return {
        name: point_chart(
            [
                Point(
                    METHOD_NAMES[row.method],
                    row.throughput,
                    row.published,
                    style=0 if row.method is Method.SDRPN else 1,
                )
                for row in rows
                if row.throughput is not None
            ],
            title=f"Speed and {rows[0].figure} on {name}",
            x_label="speed relative to base",
            y_label=f"{rows[0].figure}, per cent",
        )
        for name, rows in _by_benchmark(comparison).items()
    }


def threshold_charts(comparison: Comparison) -> dict[str, Markup]:
    """Benchmark -> plot of accuracy, recall and share of crops over the region threshold."""
    charts = {}
    for name in dict.fromkeys(point.benchmark for point in comparison.sweep):
        points = [point for point in comparison.sweep if point.benchmark == name]
        accuracy = [(p.threshold, 100 * p.accuracy.value) for p in points]
        crops = [(p.threshold, 100 * p.crop_ratio) for p in points]
        recall = [(p.threshold, 100 * p.box_recall) for p in points if p.box_recall is not None]
        charts[name] = line_chart(
            [
                Series("accuracy", accuracy, has_markers=True),
                Series("answered with a crop", crops),
                Series("box recall", recall),
            ],
            title=f"{name} by region threshold",
            x_label="region threshold",
            y_label="per cent",
            y_range=(0.0, 100.0),
            marker=(comparison.own_threshold, f"in the table: {comparison.own_threshold:g}"),
        )
    return charts


def _by_benchmark(comparison: Comparison) -> dict[str, list[ComparisonRow]]:
    found: dict[str, list[ComparisonRow]] = {}
    for row in comparison.rows:
        found.setdefault(row.benchmark, []).append(row)
    return found


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(cell.translate(_LATEX_SPECIAL) for cell in cells) + r" \\"
