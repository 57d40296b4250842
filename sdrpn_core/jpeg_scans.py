"""How often a JPEG makes its decoder go over the whole picture, found out without decoding it.

A progressive one is refined scan by scan, in ten or so. A scan takes ten bytes, and however large
the picture is, it is gone through for each: a small file can keep a decoder busy for minutes.
"""

import re

MAX_SCANS = 100
"""What libtiff reads of a JPEG, too."""

_START = b"\xff\xd8\xff"
_SCAN, _END = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""In compressed data ``ff`` is followed by 0, or by the number of a restart."""


def has_too_many_scans(data: bytes) -> bool:
    """Whether a file is a JPEG of more than ``MAX_SCANS``."""
    # No file has more of them than of these two bytes, which takes little time to see.
    if not data.startswith(_START) or data.count(bytes((0xFF, _SCAN))) <= MAX_SCANS:
        return False
    return _num_scans(data) > MAX_SCANS


def _num_scans(data: bytes) -> int:
    """Of the picture itself: its metadata may hold thumbnails with some of their own."""
    num_scans, position = 0, 2
    while (found := _MARKER.search(data, position)) is not None:
        marker = data[found.end() - 1]
        if marker == _END:
            break
        num_scans += marker == _SCAN
        length = int.from_bytes(data[found.end() : found.end() + 2])
        position = found.end() + length
    return num_scans
