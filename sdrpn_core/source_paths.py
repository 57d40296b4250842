"""Paths that data chooses: only plain relative ones may be followed."""

import re

_SURROGATE = re.compile("[\ud800-\udfff]")
_OUTSIDE = re.compile(r"^/|^[A-Za-z]:|://|\\|(^|/)\.\.(/|$)|\0")


def is_unicode(text: str) -> bool:
    """JSON escapes may spell lone surrogates, which no UTF-8 file can hold."""
    return text.isascii() or _SURROGATE.search(text) is None


def leaves_folder(path: str) -> bool:
    """Whether a path names nothing below the folder it starts from, on any system."""
    return not path or _OUTSIDE.search(path) is not None


def stays_below(path: str) -> bool:
    """Whether a path is text that names something below the folder it starts from."""
    return not leaves_folder(path) and is_unicode(path)
