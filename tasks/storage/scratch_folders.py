"""Local folders for files on their way; what a killed process left goes with the next one.

A folder belongs to whoever holds its lock, and the kernel gives up the locks of a process that
dies in whatever way. The name says which host it is of, because a lock may not be seen from others
that share the disk.
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data_contracts.errors import SdrpnError

_PREFIX = "sdrpn-scratch-"
_CHUNK_BYTES = 1 << 22
_NEARLY_FULL = 64 << 20
"""Bytes: larger ones are written at once."""


class ScratchFull(SdrpnError):
    """Files on their way do not fit in the folder for temporary files."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder in the one for temporary files (``TMPDIR``), removed at the end.

    Raises:
        ScratchFull: if what is written to it does not fit.
    """
    _remove_abandoned()
    folder, descriptor = _claim()
    try:
        with _full_disk_explained(folder.parent):
            yield folder
    finally:
        try:
            with contextlib.suppress(FileNotFoundError):  # whoever cleans up there was faster
                shutil.rmtree(folder)
        finally:
            os.close(descriptor)


def copied(source: BinaryIO, path: Path) -> tuple[str, int]:
    """Copy what is left of a stream to a file.

    Returns:
        SHA-256 and number of the bytes, so that what is read from the copy is what was checked.
    """
    total, num_bytes = hashlib.sha256(), 0
    with path.open("wb") as target:
        while data := source.read(_CHUNK_BYTES):
            total.update(data)
            num_bytes += target.write(data)
    return total.hexdigest(), num_bytes


@contextmanager
def _full_disk_explained(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # The disk of the store says the same, so look at this one.
        if error.errno != errno.ENOSPC or shutil.disk_usage(place).free > _NEARLY_FULL:
            raise
        raise ScratchFull(
            f"{place}: no space left for files on their way; free some, or set TMPDIR to a folder "
            "on a larger disk; what is finished is kept"
        ) from error


def _claim() -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_suffix()))
        # Until it is locked, a process that starts may take it for abandoned.
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a disk without locks: there nothing is removed
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if folder.exists():
                return folder, descriptor
            os.close(descriptor)


def _remove_abandoned() -> None:
    pattern = f"{_PREFIX}*{glob.escape(_suffix())}"
    for folder in Path(tempfile.gettempdir()).glob(pattern):
        # In use, another user's, or removed by another process meanwhile.
        with contextlib.suppress(OSError):
            _remove_unless_used(folder)


def _remove_unless_used(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(descriptor)


def _suffix() -> str:
    return f"@{socket.gethostname()}"
