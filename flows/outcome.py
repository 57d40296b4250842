"""What a run made or found already made, and how to show it."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from data_contracts.artifact import ArtifactRef
from data_contracts.comparison import Comparison
from data_contracts.comparison_text import sweep_rows, table_rows
from data_contracts.enums import ScoringMode, Stage
from data_contracts.label_drift import Promotion
from data_contracts.results import Results


class StageOutcome(BaseModel):
    """One stage of a run."""

    model_config = ConfigDict(frozen=True)

    stage: Stage
    label: str
    """What it ran for where a stage runs several times (a source's name); else empty."""
    ref: ArtifactRef
    seconds: float
    is_reused: bool
    """Committed before this run: nothing was computed."""


class RunOutcome(BaseModel):
    """Everything a run came to."""

    model_config = ConfigDict(frozen=True)

    stages: tuple[StageOutcome, ...]
    results: Results | None = None
    """The results table, if the run got as far."""
    evaluated: str = ""
    """Name of the source that it is of."""
    benchmarks: dict[str, Results] = {}
    """The results tables of the public benchmarks, by task."""
    comparison: Comparison | None = None
    """All benchmarks side by side, if there are several things to show."""
    table_uris: tuple[str, ...] = ()
    """Where that is written out."""
    report_uri: str | None = None
    calibration_uri: str | None = None
    """Page of the calibration's findings, if the model had to be calibrated."""
    promotion: Promotion | None = None
    """Of the label set, if the run was asked to promote it."""

    @property
    def is_reused(self) -> bool:
        """Nothing at all had to be computed."""
        return all(outcome.is_reused for outcome in self.stages)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """What there is to show, by title."""
        found = {
            "Stages": self.stage_table(),
            "Results": self.results_table(),
            "Regions against true boxes": self.regions_table(),
            # With one set of questions, the report has it.
            "Raw attention against true boxes": self.purity_table() if self.comparison else [],
            "Benchmarks": self.figures_table(),
            "Side by side, in per cent": self.comparison_table(),
            "Region thresholds, in per cent": self.sweep_table(),
        }
        return {title: rows for title, rows in found.items() if rows}

    def stage_table(self) -> list[dict[str, Any]]:
        """One row per stage."""
        return [
            {
                "stage": outcome.stage.value,
                "source": outcome.label,
                "artifact": outcome.ref.artifact_id,
                "seconds": round(outcome.seconds, 2),
                "state": "reused" if outcome.is_reused else "made",
            }
            for outcome in self.stages
        ]

    def results_table(self) -> list[dict[str, str]]:
        """One row per way of answering; empty without results."""
        if self.results is None:
            return []
        return [
            {
                "method": method.value,
                "accuracy": f"{found.accuracy.value:.3f}",
                "95 % interval": f"{found.accuracy.low:.3f} to {found.accuracy.high:.3f}",
                "gain": f"{found.gain.value:+.3f}" if found.gain else "",
                "box recall": f"{found.roi.box_recall:.3f}" if found.roi else "",
                "throughput": f"{speed:.2f}x" if (speed := self.results.throughput(method)) else "",
            }
            for method, found in self.results.methods.items()
        ]

    def figures_table(self) -> list[dict[str, str]]:
        """One row per figure, where scoring has two modes, and way of answering; else empty."""
        return [
            {
                "benchmark": name,
                "method": method.value,
                "figure": figure,
                **{mode.value: f"{found[figure]:.4f}" for mode, found in modes.items()},
            }
            for name, results in self._tables().items()
            for method, modes in results.figures.items()
            for figure in modes[ScoringMode.PUBLISHED]
        ]

    def regions_table(self) -> list[dict[str, str]]:
        """How well each way of answering finds the true boxes; empty without true boxes."""
        return [
            {
                "benchmark": name,
                "method": method.value,
                "recall": f"{roi.box_recall:.3f}",
                "recall 90 %": f"{roi.box_recall_90:.3f}",
                "IoU": f"{roi.mean_iou:.3f}",
                "pointing": "" if roi.pointing_accuracy is None else f"{roi.pointing_accuracy:.3f}",
                "gained": str(changed.num_gained) if (changed := found.changed) else "",
                "lost": str(changed.num_lost) if changed else "",
                "lost off target": str(changed.num_lost_off_target) if changed else "",
            }
            for name, results in self._tables().items()
            for method, found in results.methods.items()
            if (roi := found.roi)
        ]

    def purity_table(self) -> list[dict[str, str]]:
        """Share of raw attention inside the true box, above and below thresholds."""
        return [
            {
                "benchmark": name,
                "threshold": f"{point.threshold:g}",
                "above, inside": "" if point.above_inside is None else f"{point.above_inside:.3f}",
                "below, inside": "" if point.below_inside is None else f"{point.below_inside:.3f}",
                "cells above": f"{point.num_above:,}",
            }
            for name, results in self._tables().items()
            for point in results.purity
        ]

    def _tables(self) -> dict[str, Results]:
        """Every table, the held-out questions' first."""
        own = {self.evaluated: self.results} if self.results else {}
        return {**own, **self.benchmarks}

    def comparison_table(self) -> list[dict[str, str]]:
        """Each benchmark's main figure beside the paper's; empty without benchmarks."""
        return [] if self.comparison is None else table_rows(self.comparison)

    def sweep_table(self) -> list[dict[str, str]]:
        """One row per benchmark and further region threshold; empty without any."""
        return [] if self.comparison is None else sweep_rows(self.comparison)

    def summary(self) -> dict[str, Any]:
        """Plain data for ``--json``: the results' numbers, artifacts, seconds per stage."""
        artifacts: dict[str, Any] = {}
        seconds: dict[str, float] = {}
        for outcome in self.stages:
            name = outcome.stage.value
            artifacts.setdefault(name, {})[outcome.label or "all"] = str(outcome.ref)
            seconds[name] = round(seconds.get(name, 0.0) + outcome.seconds, 3)
        return {
            **(self.results.summary() if self.results else {}),
            "benchmarks": {name: found.summary() for name, found in self.benchmarks.items()},
            "comparison": self.comparison.model_dump(mode="json") if self.comparison else None,
            "tables": list(self.table_uris),
            "artifacts": artifacts,
            "seconds": {**seconds, "total": round(sum(seconds.values()), 3)},
            "reused": self.is_reused,
            "report": self.report_uri,
            "calibration": self.calibration_uri,
            "promotion": self.promotion.model_dump(mode="json") if self.promotion else None,
        }
