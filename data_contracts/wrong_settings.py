"""What is wrong with settings, said in one line: the keys, and what to do about each."""

import reprlib
from difflib import get_close_matches
from textwrap import shorten
from typing import Any

from pydantic import ValidationError

from data_contracts.addresses import concealed
from data_contracts.errors import SdrpnError

UNKNOWN_KEY = "extra_forbidden"
"""Type of the error that pydantic reports for a key which a model does not have."""
VALID_KEYS = "valid_keys"
"""What such an error has in its context: the keys of that very model, in their order."""
SECTIONS = "sections"
"""And those of them that have the unknown key among their own."""
BESIDE = "beside"
"""And the sections beside the model's own that have it."""


class WrongSetting(SdrpnError, ValueError):
    """Settings that are not allowed; the message names the key and the remedy."""


def problems_of(error: ValidationError) -> str:
    """Every wrong key, in one line."""
    found = [dict(problem) for problem in error.errors()]
    return "; ".join(_describe(one) for one in found if not _follows(one, found))


_ELSEWHERE = {
    "regions.threshold": (
        "training chooses the threshold; evaluation.region_threshold evaluates another"
    ),
    **dict.fromkeys(
        ("device", "store", "num_workers"), "it is a key of the runtime file (--runtime)"
    ),
    "batch_size": (
        "how many images go through the model at once is set by batch_size of the runtime file, "
        "how many labels make a step by training.batch_size"
    ),
}
"""Keys that people look for in a wrong place -> the right one."""


def _describe(problem: dict[str, Any]) -> str:
    # What has brackets is no key but a form of value that was tried.
    parts = [_cut(part) for part in map(str, problem["loc"]) if "[" not in part]
    if not parts:
        return _reason(problem)
    key = ".".join(parts)
    if problem["type"] == "missing":
        instead = ", or give --data and --images" if key == "sources" else ""
        return f"key '{key}' is missing: add it{instead}"
    if problem["type"] == UNKNOWN_KEY:
        return f"key '{key}' is not known: {_ELSEWHERE.get(key) or _remedy(parts, problem['ctx'])}"
    return f"key '{key}': {_reason(problem)}"


def _remedy(parts: list[str], context: dict[str, Any]) -> str:
    """What to do about an unknown key."""
    valid, above = context[VALID_KEYS], parts[:-1]
    is_misspelt = get_close_matches(parts[-1], valid.split(", "), cutoff=0.8)
    inside, beside = context[SECTIONS], context.get(BESIDE, "")
    if (sections := inside or beside) and not is_misspelt:
        # Within a list, keys have forms of values between them, which are in no file.
        is_in_list = any(part.isdecimal() for part in above)
        here = [] if is_in_list else above if inside else above[:-1]
        places = " or ".join(".".join([*here, name]) for name in sections.split(", "))
        return f"put it under {places}; valid here are {valid}"
    return f"remove it or mend its spelling; valid are {valid}"


_SHOWN = 60
_SECTION = "a section with keys of its own is needed"
_NEEDED = {
    "model_type": _SECTION,
    "model_attributes_type": _SECTION,
    "dict_type": _SECTION,
    "tuple_type": "a list is needed",
}
"""Type of a problem that pydantic puts in Python's terms -> in the file's."""


class _Brief(reprlib.Repr):
    """A value's beginning, for a message: by aliases, YAML repeats sections without end."""

    def repr_str(self, x: str, level: int) -> str:
        return repr(concealed(x)[:_SHOWN])


def _cut(text: str) -> str:
    """A long text's beginning."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _follows(problem: dict[str, Any], others: list[dict[str, Any]]) -> bool:
    """Whether a list is too short only because items of it are wrong."""
    place = problem["loc"]
    inside = (other["loc"][: len(place)] == place for other in others if other is not problem)
    return problem["type"] == "too_short" and any(inside)


def _reason(problem: dict[str, Any]) -> str:
    """What is wrong, without pydantic's word for errors of our own validators."""
    needed = _NEEDED.get(problem["type"])
    if needed is not None:
        return f"{needed}, not {shorten(_Brief().repr(problem['input']), _SHOWN)}"
    said = str(problem["msg"]).removeprefix("Value error, ")
    given = problem.get("ctx", {}).get("tag", problem["input"])
    return said.replace(given, _cut(given)) if isinstance(given, str) and given else said
