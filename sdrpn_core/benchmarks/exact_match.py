"""Whole-answer exact match, up to case, spacing and punctuation."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from data_contracts.enums import ScoringMode

_UNIT = "%\N{DEGREE SIGN}"
_NO_WORD_BEFORE = rf"""(?<![\w{_UNIT}])(?<![\w{_UNIT}]["')\]])"""
_MEANINGFUL = re.compile(rf"{_NO_WORD_BEFORE}-(?=\.?\d)|(?<=\w)[%#]")
"""A minus sign, not the hyphen of "3-5" or "50%-60%"; "%" and "#" as in "5%" and "C#", not "#1"."""
_SPACED_SIGN = re.compile(r"(?<=\d)\s+(?=%)|(?<=[^\W\d])\s+(?=#(?!\s*\w))")
_BARE_POINT = re.compile(rf"{_NO_WORD_BEFORE}(?<!\.)\.(?=\d)")
"""Of a number without a whole part, not of "No.5" or "a).5"."""
_MINUS = re.compile(r"\N{MINUS SIGN}|\N{EN DASH}(?=\.?\d)")


def exact_match(prediction: str, document: Mapping[str, Any], mode: ScoringMode) -> float:
    """1 if the answer equals any reference answer after normalisation, else 0.

    No answer is never right. Both modes are the same.
    """
    del mode
    answer = normalize(prediction)
    references = {normalize(text) for text in document["answers"]}
    return float(answer != "" and answer in references)


def normalize(text: str) -> str:
    """Case folded, single spaces, punctuation as spaces but for what changes the meaning.

    A sign before a number stays, and so do "%" and "#" at the end of a number or word. ".5" is 0.5.
    A text of nothing but punctuation stays as it is.
    """
    plain = _MINUS.sub("-", unicodedata.normalize("NFKC", text).casefold())
    plain = _BARE_POINT.sub("0.", plain)
    plain = " ".join(_SPACED_SIGN.sub("", plain).split())
    kept = {found.start() for found in _MEANINGFUL.finditer(plain)}
    spaced = (
        " " if unicodedata.category(character).startswith("P") and place not in kept else character
        for place, character in enumerate(plain)
    )
    return " ".join("".join(spaced).split()) or plain
