"""Settings read from files, and what is wrong with them said in one line."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import ValidationError

from data_contracts.base import S
from data_contracts.errors import one_line
from data_contracts.json_lines import json_value, text_lines
from data_contracts.unique_keys import RepeatedKey, parse_json, parse_yaml
from data_contracts.wrong_settings import WrongSetting, problems_of


class ConfigError(WrongSetting):
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
    if data is None:  # an empty file, or all of its keys are commented out
        data = {}
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
        raise ConfigError(f"{origin}: {problems_of(error)}") from None


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
