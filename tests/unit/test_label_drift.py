"""Agreement of label sets on worked examples, and the limits of promotion one by one."""

from typing import Any

import numpy as np
import pytest

from data_contracts.label_drift import LabelCounts, LabelDrift, PromotionLimits
from sdrpn_core.label_drift import LabelAgreement, label_agreement

ONE = np.array([1, 1, 0, -100, 0, 0], np.int8)
OTHER = np.array([1, 0, 0, 1, -100, 0], np.int8)
BOXES = np.array([[0, 0, 2, 2], [1, 1, 4, 3]])


def test_cells_that_either_ignores_are_not_compared() -> None:
    found = label_agreement(ONE, OTHER, BOXES, BOXES)
    assert (found.num_decided, found.num_equal) == (4, 3)
    assert found.cell_agreement == pytest.approx(3 / 4)
    assert label_agreement(OTHER, ONE, BOXES, BOXES) == found


def test_box_overlap_is_the_mean_over_questions() -> None:
    moved = np.array([[1, 0, 3, 2], [10, 10, 11, 11]])
    found = label_agreement(ONE, ONE, BOXES, moved)
    assert found.box_overlap == pytest.approx((2 / 6 + 0) / 2)
    assert label_agreement(ONE, ONE, BOXES, BOXES).box_overlap == 1


def test_parts_add_up_and_nothing_is_not_zero() -> None:
    part = label_agreement(ONE, OTHER, BOXES, BOXES)
    both = part + part
    assert both.num_questions == 4
    assert both.cell_agreement == part.cell_agreement
    assert (LabelAgreement().box_overlap, LabelAgreement().cell_agreement) == (None, None)


def test_labels_of_different_questions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(6,\) and \(5,\)"):
        label_agreement(ONE, OTHER[:5], BOXES, BOXES)


def drift(num_labelled: int = 100, foreground_ratio: float = 0.1, **changes: Any) -> LabelDrift:
    name = "merge-labels/" + "0" * 20
    old = LabelCounts(label_set=name, num_questions=110, num_labelled=100, foreground_ratio=0.1)
    new = old.model_copy(
        update={"num_labelled": num_labelled, "foreground_ratio": foreground_ratio}
    )
    same: dict[str, Any] = {"num_compared": 100, "box_overlap": 1.0, "cell_agreement": 1.0}
    return LabelDrift(new=new, previous=old, **same | changes)


@pytest.mark.parametrize(
    ("changed", "breach"),
    [
        (drift(num_labelled=0), "0 labels, fewer than min_labelled 1"),
        (drift(num_lost=11), "0.110 of the labels lost, max_lost_ratio is 0.1"),
        (drift(foreground_ratio=0.13), "foreground share 0.1000 is now 0.1300, a change of 0.30"),
        (drift(foreground_ratio=0.07), "max_foreground_change is 0.25"),
        (drift(box_overlap=0.79), "box overlap 0.790, min_box_overlap is 0.8"),
        (drift(cell_agreement=0.89), "cell agreement 0.890, min_cell_agreement is 0.9"),
        # Labels of another grid were promoted unseen.
        (
            drift(num_lost=10, num_compared=0, box_overlap=None, cell_agreement=None),
            "only 0 of 90 questions labelled in both are on one grid in both, min_compared_ratio",
        ),
    ],
)
def test_every_limit_is_named_when_it_does_not_hold(changed: LabelDrift, breach: str) -> None:
    (found,) = PromotionLimits().breaches(changed)
    assert breach in found


def test_what_lies_on_a_limit_holds() -> None:
    at_limits = drift(
        num_labelled=1,
        foreground_ratio=0.125,
        num_lost=10,
        num_compared=45,
        box_overlap=0.8,
        cell_agreement=0.9,
    )
    assert PromotionLimits().breaches(at_limits) == ()


def test_the_first_label_set_only_needs_labels() -> None:
    first = LabelDrift(new=drift().new, previous=None)
    assert PromotionLimits().breaches(first) == ()
    assert PromotionLimits(min_labelled=101).breaches(first) != ()
