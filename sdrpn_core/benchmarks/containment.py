"""Containment of the reference answer: OCRBench.

Source: Liu et al. 2023 (arXiv 2305.07895); lmms-eval ``tasks/ocrbench`` for ``published``.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from data_contracts.enums import ScoringMode
from sdrpn_core.benchmarks.document import text_field, texts_field

FORMULA_DATASET = "HME100k"
"""Its answers are formulas: case counts, spaces do not."""

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: ord(" ")}


def containment(prediction: str, document: Mapping[str, Any], mode: ScoringMode) -> float:
    """1 if any reference (column ``answer``) occurs in the answer, else 0.

    ``published`` finds a reference inside a longer word or number, and an empty one everywhere.
    """
    is_formula = text_field(document, "dataset") == FORMULA_DATASET
    answers = texts_field(document, "answer")
    if mode is ScoringMode.PUBLISHED:
        tidy = _formula if is_formula else _published_text
        return float(any(tidy(answer) in tidy(prediction.strip()) for answer in answers))
    if is_formula:
        return float(any(_formula(answer) in _formula(prediction) for answer in filled(answers)))
    return float(any(_occurs(_text(answer), _text(prediction)) for answer in filled(answers)))


def filled(answers: list[str]) -> list[str]:
    """References that say anything."""
    return [answer for answer in answers if answer.strip()]


def _formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _published_text(text: str) -> str:
    return text.translate(_FULL_WIDTH).lower().strip().replace("\n", " ")


def _text(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


_NUMBER = re.compile(r"(?<![\d.,])(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+)(?![.,]?\d)")


def _occurs(answer: str, prediction: str) -> bool:
    """Whether a text occurs, not as a part of a longer Latin word or number (2,100 is one, a date
    is not)."""
    start = r"(?<![a-z0-9])" if re.match(r"[a-z0-9]", answer) else ""
    end = r"(?![a-z0-9])" if re.search(r"[a-z0-9]$", answer) else ""
    numbers = [number.span() for number in _NUMBER.finditer(prediction)]
    return any(
        not any(first < edge < last for edge in place.span() for first, last in numbers)
        for place in re.finditer(f"{start}{re.escape(answer)}{end}", prediction)
    )
