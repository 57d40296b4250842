"""SHA-256 digests, by which content is named and checked."""

import hashlib
from pathlib import Path


def digest(data: bytes) -> str:
    """Of bytes in memory."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """Of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
