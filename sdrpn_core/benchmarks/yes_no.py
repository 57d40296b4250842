"""Yes or no: POPE.

Source: Li et al. 2023 (arXiv 2305.10355); lmms-eval ``tasks/pope`` for ``published``.
"""

import re
import reprlib
from collections.abc import Mapping
from typing import Any

from data_contracts.enums import ScoringMode
from sdrpn_core.benchmarks.document import UnusableDocument, text_field


def yes_no_accuracy(prediction: str, document: Mapping[str, Any], mode: ScoringMode) -> float:
    """1 if the answer is the ``answer``, yes or no, else 0."""
    return float(given_answer(prediction, mode) == true_answer(document))


def given_answer(prediction: str, mode: ScoringMode) -> str:
    """What was answered: for ``published`` the whole text, so that "Yes." is neither yes nor no.

    ``strict`` takes the first word.
    """
    text = prediction.lower().strip()
    if mode is ScoringMode.PUBLISHED:
        return text
    word = re.search(r"\w+", text)
    return word.group() if word else ""


def true_answer(document: Mapping[str, Any]) -> str:
    """``yes`` or ``no``.

    Raises:
        UnusableDocument: if the column ``answer`` holds anything else.
    """
    answer = text_field(document, "answer").lower().strip()
    if answer not in {"yes", "no"}:
        held = reprlib.repr(answer)
        raise UnusableDocument(f"column 'answer' holds {held}; POPE knows only yes and no")
    return answer
