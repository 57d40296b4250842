"""Multiple choice: which option an answer means. V*, HR-Bench.

Source: lmms-eval ``tasks/vstar_bench`` and ``tasks/hrbench`` for ``published`` (the latter follows
VLMEvalKit's ``can_infer``). HR-Bench sends what these rules cannot decide to a judge model; here
such an answer is wrong, and ``hrbench_choice`` tells which ones they are.
"""

import re
import string
from collections.abc import Mapping
from typing import Any

from data_contracts.enums import ScoringMode
from sdrpn_core.benchmarks.document import UnusableDocument, text_field

NO_OPTION = "Z"
"""HR-Bench's letter for an answer that refuses to choose."""

# An option ends with its line: the sentence that asks for a letter follows the last one.
_VSTAR_OPTION = re.compile(r"\([A-D]\)\s*([^()\n]+?)(?=\s*\([A-D]\)|\s*\n|\s*$)")
# In this order; the first that matches anywhere decides.
_VSTAR_LETTERS = (
    r"^([A-D])",
    r"(?:THE\s+)?(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
    r"\(([A-D])\)",
    r"([A-D])\s*[.)\]]",
    r"(?:^|\s)([A-D])(?:\s|$)",
)
_HRBENCH_MARKS = ".()[],:;!*#{}"
_HRBENCH_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_NO_NOUN_PHRASE = (
    "and|appears|are|as|at|because|but|by|contains|corresponds|describes|fits|for|from|has|if|in|is"
    "|isn't|it|its|looks|matches|on|or|says|seems|shows|since|so|that|the|this|to|was|which|with"
    "|would"
)
"""Words that follow an option's letter A, and no article: no noun phrase begins with them."""
_ARTICLE = (
    r"(?<!(?i:option ))(?<!(?i:choice ))(?<!(?i:letter ))"
    rf"A (?!(?:{_NO_NOUN_PHRASE})(?![\w'-]))[a-z]"
)
_LETTER = re.compile(rf"(?<![\w'])(?!{_ARTICLE})([A-Z])(?![\w'])")
_JUDGE_FAILED = "Failed to obtain answer via API"


def vstar_accuracy(prediction: str, document: Mapping[str, Any], mode: ScoringMode) -> float:
    """1 if the answer means the option named by ``label``, else 0."""
    label = text_field(document, "label").strip().upper()
    if mode is ScoringMode.PUBLISHED:
        return float(vstar_choice(prediction) == label)
    options = dict(zip("ABCD", vstar_options(text_field(document, "text")), strict=False))
    return float(strict_choice(prediction, options or dict.fromkeys("ABCD", "")) == label)


def vstar_options(text: str) -> list[str]:
    """Options of a V* question, ``... (A) red (B) blue``, in order."""
    return [option.strip() for option in _VSTAR_OPTION.findall(text)]


def vstar_choice(prediction: str) -> str | None:
    """Letter that lmms-eval reads out of an answer; None if it finds none.

    Any answer that merely starts with a letter from A to D counts as that letter ("Both" is B).
    """
    text = prediction.strip().upper()
    for pattern in _VSTAR_LETTERS:
        found = re.search(pattern, text, re.IGNORECASE)
        if found is not None:
            return found.group(1).upper()
    letters = re.findall("[A-D]", text)
    return letters[0] if len(letters) == 1 else None


def hrbench_accuracy(prediction: str, document: Mapping[str, Any], mode: ScoringMode) -> float:
    """1 if the answer means the option named by ``answer``, else 0; undecided answers are wrong."""
    right = text_field(document, "answer").lower()
    choose = hrbench_choice if mode is ScoringMode.PUBLISHED else strict_choice
    choice = choose(prediction.strip(), hrbench_options(document))
    return float(choice is not None and choice.lower() == right)


def hrbench_options(document: Mapping[str, Any]) -> dict[str, str]:
    """Letter -> text of the options that a row has.

    Raises:
        UnusableDocument: if it has none.
    """
    values = {letter: document.get(letter) for letter in string.ascii_uppercase}
    options = {
        letter: str(value)
        for letter, value in values.items()
        if value is not None and value == value  # NaN stands for a missing option
    }
    if not options:
        raise UnusableDocument("there are no option columns 'A', 'B', ...; is this HR-Bench?")
    return options


def hrbench_choice(prediction: str, options: Mapping[str, str]) -> str | None:
    """Letter that lmms-eval reads out of an answer without its judge; None if it would ask it."""
    return _hrbench_letter(prediction, options) or _hrbench_text(prediction, options)


def _hrbench_letter(prediction: str, options: Mapping[str, str]) -> str | None:
    if _JUDGE_FAILED in prediction:
        return None
    if any(refusal in prediction for refusal in _HRBENCH_REFUSALS):
        return NO_OPTION
    words = set(prediction.translate({ord(mark): " " for mark in _HRBENCH_MARKS}).split())
    named = [letter for letter in options if letter in words]
    if len(named) == 1:
        return named[0]
    return NO_OPTION if not named and NO_OPTION in words else None


def _hrbench_text(prediction: str, options: Mapping[str, str]) -> str | None:
    """The one option whose text occurs, be it inside a longer word."""
    text = prediction.lower()
    found = [letter for letter, option in options.items() if option.lower() in text]
    return found[0] if len(found) == 1 else None


def strict_choice(prediction: str, options: Mapping[str, str]) -> str | None:
    """The one option that an answer names by its letter or, failing that, by its text.

    A letter stands alone; a capital A before a small letter is an article, unless it is called an
    option or what follows can follow no article ("A is correct").
    """
    text = prediction.strip()
    alone = re.fullmatch(r"\W*([A-Za-z])\W*", text)
    if alone is not None:
        letter = alone.group(1).upper()
        return letter if letter in options else None
    letters = _LETTER.findall(text)
    standing = [letter for letter in options if letter in letters]
    if standing:
        return standing[0] if len(standing) == 1 else None
    folded = " ".join(text.casefold().split())
    named = [letter for letter, option in options.items() if _names(option, folded)]
    return named[0] if len(named) == 1 else None


def _names(option: str, text: str) -> bool:
    words = re.escape(" ".join(option.casefold().split()).rstrip("."))
    return bool(words) and re.search(rf"(?<!\w){words}(?!\w)", text) is not None
