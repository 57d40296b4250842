"""The results table of one evaluation: a versioned JSON document, and its summary."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from data_contracts.base import Settings
from data_contracts.enums import Method, ScoringMode


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


class ChangedAnswers(Settings):
    """Documents that one way of answering gets right and base does not, and the reverse.

    Right is at least half of the score.
    """

    num_gained: int
    num_lost: int
    """Base right, this way wrong."""
    num_lost_off_target: int | None
    """Of those with a true box: the crop shows less than half of it, or there is none."""
    lost: tuple[str, ...]
    """Question ids of the lost documents."""


class PurityPoint(Settings):
    """Where raw attention lies above and below a threshold; micro averages over cells."""

    threshold: float
    """Share of the map's maximum."""
    above_inside: float | None
    """Share of the cells above it that are inside the true box (centre rule)."""
    below_inside: float | None
    """Share of the cells below it that are; what is taken for background there is wrong."""
    num_above: int
    num_below: int


class MethodResult(Settings):
    """One way of answering, over all its documents."""

    num_documents: int
    accuracy: Interval
    gain: Interval | None
    """Accuracy minus base on the same documents; None for base or without base."""
    recovered_share: Interval | None
    """Gain as a share of the oracle's; None where the oracle gains nothing."""
    p_value: float | None = None
    """Of the gain, two-sided, by the paired bootstrap."""
    changed: ChangedAnswers | None = None
    """Against base; None for base or without base."""
    crop_ratio: float
    """Share of documents answered with at least one crop."""
    roi: RoiResult | None


class Withdrawal(Settings):
    """SD-RPN's answers with the image withdrawn against those without; on common documents."""

    difference: Interval
    """In accuracy; positive where withdrawing helps."""
    num_gained: int
    """Documents that are right only with the image withdrawn; right is at least half of the
    score."""
    num_lost: int
    """The reverse."""


class MethodSpeed(Settings):
    """How fast one way of answering was; medians over its documents."""

    seconds_per_document: float
    throughput: float | None
    """Relative to base: base's seconds / this method's seconds on the same batch."""


class Speed(Settings):
    """What an evaluation's clock said: unlike all else in its results, no two runs agree on it."""

    schema_id: Literal["speed.v1"] = "speed.v1"
    methods: dict[Method, MethodSpeed]


class LabelStepResult(Settings):
    """Label quality after one denoising step, against true boxes; micro averages over cells."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    step: str
    num_samples: int
    num_labelled: int
    """Samples with any foreground."""
    touch_precision: float | None = Field(
        validation_alias="precision", serialization_alias="precision"
    )
    """Share of foreground cells that show any part of the true box; ``precision`` in JSON, as
    ``results.v2`` has always called it."""
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
    """Everything that one evaluation found; a function of its predictions but for ``speed``."""

    schema_id: Literal["results.v2"] = "results.v2"
    benchmark: str
    num_documents: int
    methods: dict[Method, MethodResult]
    categories: tuple[CategoryResult, ...]
    labels: tuple[LabelStepResult, ...]
    """Label quality after each denoising step, in order; empty without true boxes."""
    purity: tuple[PurityPoint, ...] = ()
    """Raw attention against true boxes by threshold; empty without either."""
    withdrawal: Withdrawal | None = None
    """What withdrawing the image costs; None unless both ways were asked."""
    figures: dict[Method, dict[ScoringMode, dict[str, float]]] = {}
    """A public benchmark's figures under lmms-eval's names, by category too; of one's own questions
    the mean score; empty where both modes are the same."""
    speed: dict[Method, MethodSpeed] = {}
    """Stored in a file of its own (``speed.v1``), so that equal predictions give equal results."""

    def throughput(self, method: Method) -> float | None:
        """A method's speed relative to base; None where nobody measured it."""
        return self.speed[method].throughput if method in self.speed else None

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
            "p_value": {
                m.value: r.p_value for m, r in self.methods.items() if r.p_value is not None
            },
            "changed": {
                m.value: r.changed.model_dump(mode="json")
                for m, r in self.methods.items()
                if r.changed
            },
            "intervals": {
                m.value: {
                    name: found.model_dump()
                    for name in ("accuracy", "gain", "recovered_share")
                    if (found := getattr(r, name)) is not None
                }
                for m, r in self.methods.items()
            },
            "purity": [point.model_dump() for point in self.purity],
            "categories": [category.model_dump(mode="json") for category in self.categories],
            "crop_ratio": {m.value: r.crop_ratio for m, r in self.methods.items()},
            "seconds_per_document": {
                m.value: s.seconds_per_document for m, s in self.speed.items()
            },
            "recovered_share": {
                m.value: r.recovered_share.value
                for m, r in self.methods.items()
                if r.recovered_share
            },
            "labels": {
                "precision": final.touch_precision if final else None,
                "recall": final.recall if final else None,
                "steps": [step.model_dump() for step in self.labels],
            },
            "roi": {
                "box_recall": sdrpn.box_recall if sdrpn else None,
                "mean_iou": sdrpn.mean_iou if sdrpn else None,
                "pointing_accuracy": sdrpn.pointing_accuracy if sdrpn else None,
                "methods": {name: roi.model_dump() for name, roi in rois.items()},
            },
            "figures": {
                method.value: {mode.value: dict(found) for mode, found in modes.items()}
                for method, modes in self.figures.items()
            },
            "throughput": {m.value: self.throughput(m) for m in self.methods},
        }
