"""Words of messages, and texts of others in pages."""

import re

_MARKS = re.compile(r"([\\`*\[\]<>|&])")


def counted(number: int, noun: str) -> str:
    """1 question, 2 questions."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def markdown(text: str) -> str:
    """Text for a page in Markdown, on one line: nothing in it is a mark, a link or a tag."""
    return _MARKS.sub(r"\\\1", " ".join(text.splitlines()))


def markdown_code(text: str) -> str:
    """Text as code within a line of a page in Markdown, or within a cell of its tables."""
    line = " ".join(text.splitlines()).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"
