"""One benchmark question about one image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_contracts.enums import QuestionKind
from sdrpn_core.geometry import BoxXYXY


@dataclass(frozen=True)
class Document:
    """What a method is asked, and what it is judged by."""

    benchmark: str
    """Name of the scoring rule."""
    question_id: str
    image_uri: str
    question: str
    """As put to the model, answer-style suffix included."""
    answers: tuple[str, ...]
    """Reference answers; any of them is right."""
    kind: QuestionKind = QuestionKind.NATURAL
    category: str = ""
    """Group for the by-category table; for scenes the layout."""
    true_box: BoxXYXY | None = None
    """Where the answer is, in source pixels; only evaluation knows it."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The benchmark's own row, for scoring rules that need more than the answers."""

    def row(self) -> dict[str, Any]:
        """The document as scoring rules take it: the benchmark's fields and ``answers``."""
        return {"answers": list(self.answers), **self.fields}
