"""True boxes beside a LLaVA mix, for evaluation alone: JSON Lines, one turn's box a line."""

from pydantic import ConfigDict, FiniteFloat, model_validator

from data_contracts.base import Settings


class MixBox(Settings):
    """One line; what else it says is not read."""

    model_config = ConfigDict(extra="ignore")

    image: str
    """Path as in the records."""
    turn: int
    box: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    """x0, y0, x1, y1 in pixels of the upright image."""
    source_id: str | None = None
    """Of the record; None for every record of that image."""
    layout: str = ""

    @model_validator(mode="after")
    def _has_area(self) -> "MixBox":
        x0, y0, x1, y1 = self.box
        if x0 >= x1 or y0 >= y1:
            raise ValueError("box is empty: x0 < x1 and y0 < y1 are needed")
        return self
