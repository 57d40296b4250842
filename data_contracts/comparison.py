"""What an evaluation's results come to side by side, and beside the paper's: versioned JSON."""

from typing import Literal

from data_contracts.base import Settings
from data_contracts.enums import Method
from data_contracts.results import Interval


class ComparisonRow(Settings):
    """One way of answering on one benchmark; figures in per cent."""

    benchmark: str
    figure: str
    """Name of the figure that papers give, as lmms-eval prints it; ``accuracy`` for others."""
    method: Method
    num_documents: int
    published: float
    strict: float
    paper: float | None
    """The same figure in the paper of SD-RPN; None where it gives none for this model."""
    difference: float | None
    """``published`` minus ``paper``."""
    gain: Interval | None
    """Mean score minus base's on the same documents, with its paired bootstrap interval."""
    p_value: float | None
    throughput: float | None
    """Relative to base."""


class SweepPoint(Settings):
    """SD-RPN on one benchmark with another region threshold."""

    benchmark: str
    threshold: float
    accuracy: Interval
    """Mean score."""
    box_recall: float | None
    mean_iou: float | None
    crop_ratio: float
    """Share of documents answered with a crop."""


class Comparison(Settings):
    """All benchmarks of one evaluation."""

    schema_id: Literal["comparison.v1"] = "comparison.v1"
    model: str
    paper_model: str | None
    """Model whose published figures stand beside; None if the paper has none for this one."""
    own_threshold: float
    """Region threshold that ``rows`` were answered with: the RPN's own, unless told otherwise."""
    rows: tuple[ComparisonRow, ...]
    sweep: tuple[SweepPoint, ...] = ()
