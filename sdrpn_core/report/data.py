"""What a report shows. Every part may be missing: a run may stop after any stage."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_contracts.enums import Method
from data_contracts.results import Results
from sdrpn_core.evaluation.changed_answers import is_right
from sdrpn_core.geometry import BoxXYXY, Letterbox
from sdrpn_core.regions import Region
from sdrpn_core.rpn.config import RpnConfig


class Outcome(StrEnum):
    """What became of a question, in the order the gallery shows them."""

    WIN = "win"
    LOSS = "loss"
    WRONG_REGION = "wrong_region"
    RIGHT_REGION = "right_region"
    BOTH_WRONG = "both_wrong"
    BOTH_RIGHT = "both_right"


def zoom_that_answers(rpn: RpnConfig | None, evaluated: Collection[str]) -> Method:
    """The method that answering with the RPN amounts to, unless told otherwise; where that was not
    evaluated and the other zoom was, the other."""
    ours, other = Method.SDRPN, Method.SDRPN_WITHDRAWN
    if rpn is not None and rpn.regions.withdraw_image:
        ours, other = other, ours
    return other if other in evaluated and ours not in evaluated else ours


@dataclass(frozen=True)
class GivenAnswer:
    """One method's answer and score in [0, 1]."""

    text: str
    score: float

    @property
    def is_right(self) -> bool:
        """Whether it counts as right."""
        return is_right(self.score)


@dataclass(frozen=True, eq=False)
class Example:
    """One question with everything that can be drawn of it."""

    image: Image.Image
    """The source image, or any smaller copy."""
    letterbox: Letterbox
    """Where the source image lies on the model's canvas."""
    question: str
    answers: tuple[str, ...] = ()
    """Reference answers."""
    outcome: Outcome | None = None
    category: str = ""
    note: str = ""
    """One more sentence for the caption."""
    true_box: BoxXYXY | None = None
    regions: tuple[Region, ...] = ()
    """What was zoomed into, in source pixels."""
    attention: NDArray[np.float32] | None = None
    """(h, w) raw grounding attention of the model's response."""
    labels: NDArray[np.int8] | None = None
    """(h, w) pseudo-label."""
    roi_map: NDArray[np.float32] | None = None
    """(h, w) RoI probabilities."""
    given: Mapping[Method, GivenAnswer] = field(default_factory=dict)


@dataclass(frozen=True)
class ArtifactLine:
    """One artifact that the report was made from."""

    stage: str
    artifact: str
    num_rows: int | None = None
    created_at: str = ""
    code_version: str = ""


@dataclass(frozen=True)
class ReportData:
    """All of one report."""

    title: str
    facts: Sequence[tuple[str, str]] = ()
    """Name and value of what a reader wants to know first: model, data, device."""
    results: Sequence[Results] = ()
    """Results of each benchmark."""
    label_counts: Mapping[str, int] = field(default_factory=dict)
    """Label status -> number of samples of the label set."""
    training_log: Sequence[Mapping[str, Any]] = ()
    """Entries of the training log: steps and validations."""
    rpn: RpnConfig | None = None
    answered_threshold: float | None = None
    """Region threshold that SD-RPN was told to answer with; None for the RPN's own."""
    examples: Sequence[Example] = ()
    """Held-out questions, answered."""
    label_examples: Sequence[Example] = ()
    """Samples of the label set."""
    config: Mapping[str, Any] = field(default_factory=dict)
    artifacts: Sequence[ArtifactLine] = ()
