"""ReportData -> one HTML page that needs nothing else: no network, no files beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from markupsafe import Markup

from data_contracts.enums import Method
from data_contracts.method_names import METHOD_NAMES
from data_contracts.results import Interval, LabelStepResult, MethodResult, Results
from sdrpn_core.report.charts import Bar, Series, bar_chart, line_chart
from sdrpn_core.report.data import Example, Outcome, ReportData, zoom_that_answers
from sdrpn_core.report.pages import render_page
from sdrpn_core.report.pictures import Picture, pictures_of

OUTCOME_NAMES: Mapping[Outcome, str] = {
    Outcome.WIN: "Base wrong, SD-RPN right",
    Outcome.LOSS: "Base right, SD-RPN wrong",
    Outcome.WRONG_REGION: "Both wrong, and no crop shows the true box",
    Outcome.RIGHT_REGION: "Both wrong, although the crop is in the right place",
    Outcome.BOTH_WRONG: "Both wrong",
    Outcome.BOTH_RIGHT: "Both right",
}
STEP_NAMES = {
    "threshold": "Attention over the threshold",
    "padding": "+ padding masked",
    "sinks": "+ attention sinks removed",
    "region": "+ only the strongest region kept",
    "ambiguity": "+ ambiguity ignored, bad samples rejected",
    "rivals": "+ samples with a rival region rejected",
}
SECTIONS = {
    "results": "Results",
    "categories": "By category",
    "speed": "Speed",
    "roi": "Regions",
    "labels": "Labels",
    "training": "Training",
    "threshold": "Threshold",
    "gallery": "Gallery",
    "run": "What was run",
}
"""Name of a section -> its title in the menu."""
_OF_AN_EVALUATION = ("results", "categories", "speed", "roi")
NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Tile:
    """One number that matters."""

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class ShownExample:
    """An example with its pictures drawn."""

    example: Example
    pictures: list[Picture]
    heading: str


def render_report(data: ReportData) -> str:
    """Render the page; sections of an evaluation are there if there was one, and a line says so
    if not. Other parts without data say so instead of vanishing.

    Args:
        data: whatever a run has made so far.

    Returns:
        HTML with styles, charts and pictures inline.
    """
    return render_page(
        "report.html.j2",
        filters={"percent": percent, "interval": interval, "points": points, "times": times},
        method_names=METHOD_NAMES,
        ours=_ours(data),
        withdrawn_speed=_withdrawn_speed,
        step_names=STEP_NAMES,
        none_text=NONE,
        data=data,
        sections=_sections(data),
        tiles=_tiles(data),
        evaluations=[(results, _result_charts(results, _ours(data))) for results in data.results],
        training=_training_charts(data.training_log),
        sweep_chart=_sweep_chart(data),
        groups=_groups(data.examples),
        label_examples=[_shown(example, example.category) for example in data.label_examples],
        config_text=yaml.safe_dump(dict(data.config), sort_keys=False) if data.config else "",
    )


def percent(value: float | None, digits: int = 1) -> str:
    """Share as a percentage without the sign: table headers carry it."""
    return NONE if value is None else f"{100 * value:.{digits}f}"


def interval(value: Interval | None) -> str:
    """Bounds of an interval, in percent."""
    return "" if value is None else f"{100 * value.low:.1f} to {100 * value.high:.1f}"


def points(value: float | None) -> str:
    """Difference in percentage points, always with its sign."""
    return NONE if value is None else f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def times(value: float | None) -> str:
    """Relative speed."""
    return NONE if value is None else f"{value:.2f}\N{MULTIPLICATION SIGN}"


def _withdrawn_speed(results: Results) -> float | None:
    """Speed with the image withdrawn, relative to SD-RPN without."""
    whole, withdrawn = map(results.throughput, (Method.SDRPN, Method.SDRPN_WITHDRAWN))
    return withdrawn / whole if whole and withdrawn else None


def _ours(data: ReportData) -> Method:
    """The zoom that the page stresses."""
    return zoom_that_answers(data.rpn, {m for results in data.results for m in results.methods})


def _sections(data: ReportData) -> list[tuple[str, str]]:
    """Names and titles of the sections that the page has."""
    without = set() if data.results else set(_OF_AN_EVALUATION)
    if not data.examples:
        without.add("gallery")
    return [(name, title) for name, title in SECTIONS.items() if name not in without]


def _tiles(data: ReportData) -> list[Tile]:
    tiles: list[Tile] = []
    for results in data.results[:1]:
        tiles += _result_tiles(results, _ours(data))
    if data.rpn is not None:
        validation = data.rpn.measured
        tiles.append(
            Tile(
                f"{validation.chosen.f1:.2f}",
                "RPN agreement with its labels (F1)",
                f"on held-out images at threshold {data.rpn.threshold:g}",
            )
        )
    if data.label_counts:
        total, accepted = sum(data.label_counts.values()), data.label_counts.get("ok", 0)
        tiles.append(Tile(f"{accepted:,}", "pseudo-labels made", f"of {total:,} questions"))
    return tiles


def _result_tiles(results: Results, ours: Method) -> list[Tile]:
    base, zoomed = (results.methods.get(m) for m in (Method.BASE, ours))
    if zoomed is None:
        return []
    before = f"base model {percent(base.accuracy.value)} %" if base else ""
    tiles = [Tile(f"{percent(zoomed.accuracy.value)} %", "accuracy with SD-RPN", before)]
    if zoomed.recovered_share is not None:
        share = percent(zoomed.recovered_share.value, 0)
        tiles.append(Tile(f"{share} %", "of the oracle's gain", "with the true box as 100 %"))
    speed = results.throughput(ours)
    if speed is not None:
        tiles.append(Tile(times(speed), "speed", "relative to the base model"))
    if zoomed.roi is not None:
        recall = percent(zoomed.roi.box_recall, 0)
        tiles.append(Tile(f"{recall} %", "true boxes found", "covered to at least half"))
    return tiles


def _result_charts(results: Results, ours: Method) -> dict[str, Markup]:
    methods = results.methods
    styles = {method: 0 if method is ours else 1 for method in methods}
    accuracy = [_accuracy_bar(method, result, styles[method]) for method, result in methods.items()]
    speed = [
        Bar(METHOD_NAMES[m], throughput, times(throughput), style=styles[m])
        for m in methods
        if (throughput := results.throughput(m)) is not None
    ]
    steps = [step for step in results.labels if step.touch_precision is not None]
    return {
        "accuracy": bar_chart(
            accuracy, title=f"Accuracy on {results.benchmark} by method", maximum=1.0
        ),
        "speed": bar_chart(speed, title="Speed relative to the base model"),
        "labels": bar_chart(
            [_step_bar(step, is_last=step is steps[-1]) for step in steps],
            title="Touch precision of the labels after each denoising step",
            maximum=1.0,
        ),
    }


def _accuracy_bar(method: Method, result: MethodResult, style: int) -> Bar:
    return Bar(
        label=METHOD_NAMES[method],
        value=result.accuracy.value,
        text=f"{percent(result.accuracy.value)} %",
        low=result.accuracy.low,
        high=result.accuracy.high,
        style=style,
    )


def _step_bar(step: LabelStepResult, *, is_last: bool) -> Bar:
    value = step.touch_precision or 0.0
    short = {"threshold": "threshold", "padding": "+ padding", "sinks": "+ sinks"}
    label = short.get(step.step, f"+ {step.step}")
    return Bar(label, value, f"{percent(value)} %", style=0 if is_last else 1)


def _training_charts(log: Sequence[Mapping[str, Any]]) -> dict[str, Markup]:
    steps = [entry for entry in log if entry["kind"] == "step"]
    validations = [entry for entry in log if entry["kind"] == "validation"]
    loss = [
        Series("training", [(e["step"], e["loss"]) for e in steps]),
        Series("validation", [(e["step"], e["loss"]) for e in validations], has_markers=True),
    ]
    quality = [
        Series(name, [(e["step"], e[name]) for e in validations], has_markers=True)
        for name in ("f1", "precision", "recall")
        if all(name in entry for entry in validations)
    ]
    return {
        "loss": line_chart(loss, title="Loss by training step", x_label="step", y_label="loss"),
        "quality": line_chart(
            quality,
            title="Agreement with held-out pseudo-labels by training step",
            x_label="step",
            y_label="at probability 0.5",
            y_range=(0.0, 1.0),
        ),
    }


def _sweep_chart(data: ReportData) -> Markup:
    if data.rpn is None:
        return Markup("")
    sweep = data.rpn.measured.sweep
    series = [
        Series(name, [(point.threshold, getattr(point, name)) for point in sweep])
        for name in ("f1", "precision", "recall")
    ]
    return line_chart(
        series,
        title="F1, precision and recall of cells by region threshold",
        x_label="region threshold",
        y_label="on held-out labels",
        y_range=(0.0, 1.0),
        marker=(data.rpn.threshold, f"chosen: {data.rpn.threshold:g}"),
    )


def _groups(examples: Sequence[Example]) -> list[tuple[str, list[ShownExample]]]:
    """Examples under the heading of their outcome, those without one last."""
    groups = []
    for outcome in (*Outcome, None):
        members = [example for example in examples if example.outcome is outcome]
        if members:
            heading = "Answered" if outcome is None else OUTCOME_NAMES[outcome]
            groups.append((heading, [_shown(example, heading) for example in members]))
    return groups


def _shown(example: Example, heading: str) -> ShownExample:
    return ShownExample(example, pictures_of(example), heading)
