"""Answers and boxes as commands print them."""

from collections.abc import Sequence

ASK_AS_TAUGHT = (
    "ask as it was taught to be asked, say with a new line and 'Answer the question using a single "
    "word or phrase.' after the question; the built-in model knows generated scenes only"
)
"""What to do where a model answers nothing."""


def shown_text(answer: str) -> str:
    """An answer for a person, to whom a blank line would say nothing."""
    return answer if answer.strip() else "(no answer)"


def shown_box(box: Sequence[float]) -> str:
    """A box for a person: whole pixels."""
    return "(" + ", ".join(f"{side:.0f}" for side in box) + ")"


def rounded_box(box: Sequence[float]) -> list[float]:
    """A box to a tenth of a pixel."""
    return [round(side, 1) for side in box]
