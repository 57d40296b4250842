"""One benchmark question about one image."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_contracts.enums import QuestionKind
from data_contracts.errors import SdrpnError
from sdrpn_core.geometry import BoxXYXY


class UnusableDocument(SdrpnError, ValueError):
    """A benchmark row cannot be asked or scored; the message names the column."""


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


def text_field(document: Mapping[str, Any], name: str) -> str:
    """A column that must hold text.

    Raises:
        UnusableDocument: if it is missing or holds something else.
    """
    value = document.get(name)
    if not isinstance(value, str):
        raise UnusableDocument(_wrong(document, name, "text"))
    return value


def texts_field(document: Mapping[str, Any], name: str) -> list[str]:
    """A column that must hold a list of texts, at least one; a lone text counts as a list of one.

    Raises:
        UnusableDocument: if it is missing, empty or holds something else.
    """
    value = document.get(name)
    listed = value if isinstance(value, list | tuple) else [value]
    if not listed or not all(isinstance(text, str) for text in listed):
        raise UnusableDocument(_wrong(document, name, "at least one text"))
    return list(listed)


def plain_field(document: Mapping[str, Any], name: str) -> str | float | None:
    """A column that must hold one text or number, or nothing.

    Raises:
        UnusableDocument: if it holds something else.
    """
    value = document.get(name)
    if value is not None and not isinstance(value, str | float | int):
        raise UnusableDocument(_wrong(document, name, "one text or number"))
    return value


def _wrong(document: Mapping[str, Any], name: str, wanted: str) -> str:
    if name in document:
        held = reprlib.repr(document[name])
        return f"column {name!r} holds {held}; {wanted} is needed (a test split?)"
    return f"there is no column {name!r}; the columns are {', '.join(map(str, document))}"
