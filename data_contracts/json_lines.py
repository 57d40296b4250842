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


def json_lines(data: bytes) -> list[Any]:
    """The value of every line that is not blank.

    Raises:
        ValueError: if it is not UTF-8, or a line is not JSON.
    """
    return [json.loads(line) for line in text_lines(data) if line.strip()]
