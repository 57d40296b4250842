"""Relaxed accuracy: ChartQA.

Source: Masry et al. 2022 (arXiv 2203.10244), section 5.1, after Methani et al. 2020; lmms-eval
``tasks/chartqa`` for ``published``. Years count as numbers in both modes, as in the paper, so that
2008 passes for 2012.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from data_contracts.enums import ScoringMode
from sdrpn_core.benchmarks.document import text_field

MAX_RELATIVE_CHANGE = 0.05

_SEPARATED = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?\s*%?", re.ASCII)
"""A number with thousands separators; a comma elsewhere may be a decimal one ("1,5")."""


def relaxed_accuracy(prediction: str, document: Mapping[str, Any], mode: ScoringMode) -> float:
    """1 if a number is within 5 % of the ``answer``, or a text equals it up to case; else 0."""
    target = text_field(document, "answer")
    if mode is ScoringMode.PUBLISHED:
        return float(_is_close_as_published(prediction, target))
    return float(_is_close(prediction, target))


def _is_close_as_published(prediction: str, target: str) -> bool:
    """A target of 0 is compared as text; so is what Python does not read as a number."""
    found, wanted = _python_number(prediction), _python_number(target)
    if found is None or not wanted:
        return prediction.lower() == target.lower()
    return abs(found - wanted) / abs(wanted) <= MAX_RELATIVE_CHANGE


def _is_close(prediction: str, target: str) -> bool:
    found, wanted = _number(prediction), _number(target)
    if found is None or wanted is None:
        return _tidy(prediction) == _tidy(target)
    return abs(found - wanted) <= MAX_RELATIVE_CHANGE * abs(wanted)


def _python_number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _number(text: str) -> float | None:
    """A finite number with optional thousands separators, full stop at the end, per cent."""
    text = text.strip().removesuffix(".")
    if _SEPARATED.fullmatch(text):
        text = text.replace(",", "")
    is_percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%").replace("_", " "))
    except ValueError:
        return None
    return (value / 100.0 if is_percent else value) if math.isfinite(value) else None


def _tidy(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")
