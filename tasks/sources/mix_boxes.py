"""True boxes beside a LLaVA mix, for evaluation alone: JSON Lines, one turn's box a line."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError, model_validator

from data_contracts.json_lines import text_lines
from tasks.sources.record_stream import SourceError


class MixBox(BaseModel):
    """One line; what else it says is nobody's business."""

    model_config = ConfigDict(frozen=True, extra="ignore")

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


def parse_boxes(data: bytes, origin: str) -> list[MixBox]:
    """The boxes of a file.

    Raises:
        SourceError: naming the line that is none.
    """
    try:
        lines = text_lines(data)
    except UnicodeDecodeError as error:
        raise SourceError(f"{origin}: is not UTF-8 text ({error}); save it as UTF-8") from None
    return [
        _parse(line, f"{origin} line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _parse(line: str, origin: str) -> MixBox:
    form = 'one a line: {"source_id": ..., "image": ..., "turn": 0, "box": [x0, y0, x1, y1]}'
    try:
        plain: Any = json.loads(line)
        return MixBox.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        problem = first["msg"].removeprefix("Value error, ")
        key = "".join(f"{part}." for part in first["loc"]).rstrip(".")
        said = f"{key}: {problem}" if key else problem
        raise SourceError(f"{origin}: {said}; {form}") from None
    except ValueError as error:
        raise SourceError(f"{origin}: is not JSON ({error}); {form}") from None
