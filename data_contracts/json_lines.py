"""JSON Lines: one JSON value a line.

Only newlines end a line. ``str.splitlines`` knows other separators, such as U+2028, which JSON
allows within strings and many writers leave there.
"""

import json
from typing import Any


def text_lines(data: bytes) -> list[str]:
    """The lines as they are, blank ones too, so that their places are those in the file.

    A byte order mark, which some editors write, is no part of the first.

    Raises:
        UnicodeDecodeError: if it is not UTF-8.
    """
    *lines, rest = data.decode("utf-8-sig").split("\n")
    return [*lines, rest] if rest else lines


def json_value(text: str | bytes) -> Any:
    """The value of a JSON document that somebody else may have written.

    Raises:
        ValueError: if it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def json_lines(data: bytes) -> list[Any]:
    """The value of every line that is not blank.

    Raises:
        ValueError: if it is not UTF-8, or a line is not JSON.
    """
    return [json_value(line) for line in text_lines(data) if line.strip()]
