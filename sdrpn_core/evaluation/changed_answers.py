"""Documents whose answer a method turns right or wrong, and whether its crop was to blame."""

from collections.abc import Mapping

from data_contracts.results import ChangedAnswers
from sdrpn_core.evaluation.prediction_rows import Row, crops_of, true_boxes_of
from sdrpn_core.evaluation.roi_quality import box_quality

_RIGHT = 0.5
"""Least score of an answer that counts as right."""
COVERED = 0.5
"""A crop that shows at least this share of the true box is in the right place."""


def changed_answers(rows: Mapping[str, Row], base: Mapping[str, Row]) -> ChangedAnswers:
    """Compare two ways of answering document by document.

    Args:
        rows: question id -> prediction row.
        base: the same of the base model.
    """
    common = [key for key in rows if key in base]
    gained = [key for key in common if _is_right(rows[key]) and not _is_right(base[key])]
    lost = [key for key in common if not _is_right(rows[key]) and _is_right(base[key])]
    has_boxes = any(rows[key]["true_box"] is not None for key in common)
    return ChangedAnswers(
        num_gained=len(gained),
        num_lost=len(lost),
        num_lost_off_target=sum(not covers_true_box(rows[key]) for key in lost)
        if has_boxes
        else None,
        lost=tuple(sorted(lost)),
    )


def is_right(score: float) -> bool:
    """Whether an answer with this score, in [0, 1], counts as right."""
    return score >= _RIGHT


def _is_right(row: Row) -> bool:
    return is_right(row["score"])


def covers_true_box(row: Row) -> bool:
    """Whether the crops show enough of the true box; also true where it is not known."""
    true_boxes = true_boxes_of(row)
    size = (row["image_width"], row["image_height"])
    return not true_boxes or box_quality(crops_of(row), true_boxes, size).coverage + 1e-9 >= COVERED
