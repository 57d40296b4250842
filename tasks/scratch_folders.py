"""Local folders for files on their way; what a killed process left goes with the next one.

A folder belongs to whoever holds its lock, and the kernel gives up the locks of a process that
dies in whatever way. The name says which host it is of, because a lock may not be seen from others
that share the disk.
"""

import contextlib
import fcntl
import glob
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "sdrpn-scratch-"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder in the one for temporary files (``TMPDIR``), removed at the end."""
    _remove_abandoned()
    folder, descriptor = _claim()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(descriptor)


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
