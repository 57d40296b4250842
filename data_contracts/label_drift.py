"""How a new label set differs from the one promoted before, and how much it may."""

from collections.abc import Callable

from pydantic import Field

from data_contracts.base import Settings


class LabelCounts(Settings):
    """What a label set holds."""

    label_set: str
    """``merge-labels/<id>``."""
    num_questions: int
    num_labelled: int
    """Questions whose label was accepted."""
    foreground_ratio: float | None
    """Foreground as a share of foreground and background cells; None without any."""


class LabelDrift(Settings):
    """A new label set beside the last promoted one."""

    new: LabelCounts
    previous: LabelCounts | None
    """None where nothing was promoted before; then there is nothing below either."""
    num_added: int = 0
    """Labelled questions that were not labelled before."""
    num_lost: int = 0
    """Questions that were labelled before and are not any more."""
    num_compared: int = 0
    """Questions labelled in both, on the same grid."""
    box_overlap: float | None = None
    """Intersection over union of their boxes, averaged over the compared questions."""
    cell_agreement: float | None = None
    """Share of equal labels among the cells that neither set ignores."""

    def rows(self) -> list[dict[str, str]]:
        """As a table: what, before, now."""
        figures: dict[str, Callable[[LabelCounts], float | str | None]] = {
            "label set": lambda counts: counts.label_set,
            "questions": lambda counts: counts.num_questions,
            "labelled": lambda counts: counts.num_labelled,
            "foreground share": lambda counts: counts.foreground_ratio,
        }
        both = [
            _row(what, None if self.previous is None else read(self.previous), read(self.new))
            for what, read in figures.items()
        ]
        if self.previous is None:
            return both
        return [
            *both,
            _row("labelled before and lost", None, self.num_lost),
            _row("newly labelled", None, self.num_added),
            _row("compared", None, self.num_compared),
            _row("box overlap", None, self.box_overlap),
            _row("cells that agree", None, self.cell_agreement),
        ]


class PromotionLimits(Settings):
    """What a new label set may differ in and still take the place of the promoted one."""

    min_labelled: int = Field(1, ge=0)
    """Fewest accepted labels; the only limit for the first label set."""
    max_lost_ratio: float = Field(0.1, ge=0, le=1)
    """Largest share of the questions labelled before that may not be labelled any more."""
    max_foreground_change: float = Field(0.25, ge=0)
    """Largest change of the foreground share, as a share of what it was."""
    min_box_overlap: float = Field(0.8, ge=0, le=1)
    """Least mean intersection over union of boxes of the same questions."""
    min_cell_agreement: float = Field(0.9, ge=0, le=1)
    """Least share of equal labels among cells that neither set ignores."""
    min_compared_ratio: float = Field(0.5, ge=0, le=1)
    """Least share of the questions labelled in both that can be compared: on other grids the two
    limits above say nothing."""

    def breaches(self, drift: LabelDrift) -> tuple[str, ...]:
        """What is beyond the limits, each naming the limit; empty if the set may be promoted."""
        found = []
        labelled = drift.new.num_labelled
        if labelled < self.min_labelled:
            found.append(f"{labelled} labels, fewer than min_labelled {self.min_labelled}")
        if drift.previous is None:
            return tuple(found)
        lost = drift.num_lost / max(drift.previous.num_labelled, 1)
        if lost > self.max_lost_ratio:
            found.append(f"{lost:.3f} of the labels lost, max_lost_ratio is {self.max_lost_ratio}")
        in_both = drift.previous.num_labelled - drift.num_lost
        if drift.num_compared < self.min_compared_ratio * in_both:
            found.append(
                f"only {drift.num_compared} of {in_both} questions labelled in both are on one "
                f"grid in both, min_compared_ratio is {self.min_compared_ratio}; look at the "
                "labels, then promote them by hand"
            )
        before, now = drift.previous.foreground_ratio, drift.new.foreground_ratio
        if before and now is not None and abs(now - before) > self.max_foreground_change * before:
            found.append(
                f"foreground share {before:.4f} is now {now:.4f}, a change of "
                f"{abs(now - before) / before:.2f}; max_foreground_change is "
                f"{self.max_foreground_change}"
            )
        for name, value in (
            ("box_overlap", drift.box_overlap),
            ("cell_agreement", drift.cell_agreement),
        ):
            least = getattr(self, f"min_{name}")
            if value is not None and value < least:
                found.append(f"{name.replace('_', ' ')} {value:.3f}, min_{name} is {least}")
        return tuple(found)


class Promotion(Settings):
    """One entry of the history of promoted label sets."""

    label_set: str
    """``merge-labels/<id>``."""
    promoted_at: str
    """UTC, ISO 8601."""
    drift: LabelDrift
    limits: PromotionLimits
    overruled: tuple[str, ...] = ()
    """Breaches of the limits that a person promoted it in spite of."""


def _row(what: str, before: float | str | None, now: float | str | None) -> dict[str, str]:
    return {"label sets": what, "promoted": _text(before), "new": _text(now)}


def _text(value: float | str | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
