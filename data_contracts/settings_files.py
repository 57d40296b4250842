"""Settings read from files, and what is wrong with them said in one line."""

import reprlib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml
from pydantic import ValidationError

from data_contracts import base
from data_contracts.addresses import concealed
from data_contracts.base import S
from data_contracts.errors import SdrpnError, one_line
from data_contracts.json_lines import json_value, text_lines
from data_contracts.unique_keys import RepeatedKey, parse_json, parse_yaml


class ConfigError(SdrpnError, ValueError):
    """A configuration cannot be used; the message names the key and the remedy."""


def load_settings(
    kind: type[S],
    path: str | Path,
    replaced: Mapping[str, object] | None = None,
    examples: str | None = None,
) -> S:
    """Read one settings model from a YAML or JSON file.

    Args:
        kind: which model.
        path: the file; JSON if its name ends so.
        replaced: values of keys that count instead of the file's, which need not be there.
        examples: folder of such files; None if there is none.

    Raises:
        ConfigError: naming the file, the key and the remedy.
    """
    parse, language = (parse_json, "JSON") if Path(path).suffix == ".json" else (parse_yaml, "YAML")
    try:
        data = parse(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        keys = ", ".join(kind.model_fields)
        remedy = f"see {examples} for examples" if examples else f"check the path; its keys: {keys}"
        raise ConfigError(f"{path}: no such file; {remedy}") from None
    except RepeatedKey as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as {language}: {one_line(error)}") from error
    if isinstance(data, dict):
        data = {**data, **(replaced or {})}
    return parse_settings(kind, data, str(path))


def parse_settings(kind: type[S], data: object, origin: str) -> S:
    """Validate plain data as one settings model.

    Raises:
        ConfigError: one line that names ``origin`` and every wrong key.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = [dict(problem) for problem in error.errors()]
        problems = "; ".join(_describe(one) for one in found if not _follows(one, found))
        raise ConfigError(f"{origin}: {problems}") from None


def parse_lines(kind: type[S], data: bytes, origin: str) -> list[S]:
    """Validate JSON Lines, each line as one settings model; blank ones are none.

    Raises:
        ConfigError: one line that names ``origin``, the line and every wrong key.
    """
    try:
        lines = text_lines(data)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{origin}: not UTF-8 text ({error}); save it as UTF-8") from None
    return [
        _parse_line(kind, line, f"{origin} line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _parse_line(kind: type[S], line: str, origin: str) -> S:
    try:
        plain = json_value(line)
    except ValueError as error:
        raise ConfigError(f"{origin}: not JSON ({error}); one object per line") from None
    if not isinstance(plain, dict):
        raise ConfigError(f"{origin}: not a JSON object, {{...}}; one object per line")
    return parse_settings(kind, plain, origin)


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
    parts = [part for part in map(str, problem["loc"]) if "[" not in part]
    if not parts:
        return reason_of(problem)
    key = ".".join(parts)
    match problem["type"]:
        case "missing":
            instead = ", or give --data and --images" if key == "sources" else ""
            return f"key '{key}' is missing: add it{instead}"
        case base.UNKNOWN_KEY:
            return (
                f"key '{key}' is not known: {_ELSEWHERE.get(key) or _remedy(parts, problem['ctx'])}"
            )
        case _:
            return f"key '{key}': {reason_of(problem)}"


def _remedy(parts: list[str], context: dict[str, Any]) -> str:
    """What to do about an unknown key."""
    valid, above = context[base.VALID_KEYS], parts[:-1]
    is_misspelt = get_close_matches(parts[-1], valid.split(", "), cutoff=0.8)
    inside, beside = context[base.SECTIONS], context.get(base.BESIDE, "")
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


def _follows(problem: dict[str, Any], others: list[dict[str, Any]]) -> bool:
    """Whether a list is too short only because items of it are wrong."""
    place = problem["loc"]
    inside = (other["loc"][: len(place)] == place for other in others if other is not problem)
    return problem["type"] == "too_short" and any(inside)


def reason_of(problem: dict[str, Any]) -> str:
    """What is wrong, without pydantic's word for errors of our own validators."""
    needed = _NEEDED.get(problem["type"])
    if needed is not None:
        return f"{needed}, not {shorten(_Brief().repr(problem['input']), _SHOWN)}"
    return str(problem["msg"]).removeprefix("Value error, ")
