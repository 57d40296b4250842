"""The results table of one evaluation: a versioned JSON document, and its summary."""

from typing import Any, Literal

from data_contracts.base import Settings
from data_contracts.enums import Method


class Interval(Settings):
    """A measured value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class RoiResult(Settings):
    """How well a method's regions find the true boxes; over documents with a true box."""

    num_documents: int
    box_recall: float
    """Share of documents whose true box is covered to at least 50 %."""
    box_recall_90: float
    """The same for at least 90 %."""
    mean_iou: float
    mean_coverage: float
    pointing_accuracy: float | None
    """Share of score maps whose strongest cell is inside the true box; None without maps."""
    no_crop_ratio: float
    """Share of documents that were answered from the whole image."""


class MethodResult(Settings):
    """One way of answering, over all its documents."""

    num_documents: int
    accuracy: Interval
    gain: Interval | None
    """Accuracy minus base on the same documents; None for base or without base."""
    recovered_share: Interval | None
    """Gain as a share of the oracle's; None where the oracle gains nothing."""
    seconds_per_document: float
    throughput: float | None
    """Speed relative to base: median over documents of base's seconds / this method's seconds."""
    crop_ratio: float
    """Share of documents answered with at least one crop."""
    roi: RoiResult | None


class LabelStepResult(Settings):
    """Label quality after one denoising step, against true boxes; micro averages over cells."""

    step: str
    num_samples: int
    num_labelled: int
    """Samples with any foreground."""
    precision: float | None
    """Share of foreground cells that show any part of the true box."""
    centre_precision: float | None
    """Share of foreground cells whose centre is inside the true box: the strictest reading."""
    recall: float | None
    """Share of the true box's cells that are foreground."""
    false_background: float | None
    """Share of background cells inside the true box (should be near 0)."""
    labelled_recall: float | None
    """Recall over the samples with any foreground: what rejection leaves out is not counted."""


class CategoryResult(Settings):
    """All methods on the documents of one category (for scenes: the layout)."""

    category: str
    num_documents: int
    accuracy: dict[Method, Interval]
    box_recall: dict[Method, float]


class Results(Settings):
    """Everything that one evaluation measured."""

    schema_id: Literal["results.v1"] = "results.v1"
    benchmark: str
    num_documents: int
    methods: dict[Method, MethodResult]
    categories: tuple[CategoryResult, ...]
    labels: tuple[LabelStepResult, ...]
    """Label quality after each denoising step, in order; empty without true boxes."""

    def summary(self) -> dict[str, Any]:
        """Plain numbers under fixed keys: accuracy, gain, labels, roi, throughput."""
        rois = {m.value: result.roi for m, result in self.methods.items() if result.roi}
        sdrpn = rois.get(Method.SDRPN.value)
        final = self.labels[-1] if self.labels else None
        return {
            "benchmark": self.benchmark,
            "num_documents": self.num_documents,
            "accuracy": {m.value: r.accuracy.value for m, r in self.methods.items()},
            "gain": {m.value: r.gain.value for m, r in self.methods.items() if r.gain},
            "recovered_share": {
                m.value: r.recovered_share.value
                for m, r in self.methods.items()
                if r.recovered_share
            },
            "labels": {
                "precision": final.precision if final else None,
                "recall": final.recall if final else None,
                "steps": [step.model_dump() for step in self.labels],
            },
            "roi": {
                "box_recall": sdrpn.box_recall if sdrpn else None,
                "mean_iou": sdrpn.mean_iou if sdrpn else None,
                "pointing_accuracy": sdrpn.pointing_accuracy if sdrpn else None,
                "methods": {name: roi.model_dump() for name, roi in rois.items()},
            },
            "throughput": {m.value: r.throughput for m, r in self.methods.items()},
        }
