"""SHA-256 digests, by which content is named and checked."""

import hashlib
from pathlib import Path

_READ_BYTES = 1 << 20


def digest(data: bytes) -> str:
    """Of bytes in memory."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """Of a file, read in pieces."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            total.update(data)
    return total.hexdigest()
