"""Whole-answer exact match, up to case, spacing and punctuation."""

import unicodedata
from collections.abc import Mapping
from typing import Any


def exact_match(prediction: str, document: Mapping[str, Any], mode: str) -> float:
    """1 if the answer equals any reference answer after normalisation, else 0.

    An answer that normalises to nothing is never right.
    """
    if mode != "published":
        raise ValueError(f"exact match has no mode {mode!r}; use 'published'")
    answer = normalize(prediction)
    return float(answer != "" and answer in {normalize(text) for text in document["answers"]})


def normalize(text: str) -> str:
    """Case folded, punctuation as spaces, single spaces."""
    spaced = (
        " " if unicodedata.category(character).startswith("P") else character
        for character in unicodedata.normalize("NFKC", text).casefold()
    )
    return " ".join("".join(spaced).split())
