"""Rows of any number at hand in little memory: a database on disk that leaves nothing behind."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data_contracts.errors import SdrpnError

_CACHE_KIB = 1 << 14
# One process writes it once and alone, so nothing in it need survive a crash.
_SETTINGS = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -{_CACHE_KIB};
PRAGMA temp_store = FILE;
"""


_DISK_ERRORS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)


class TemporaryDiskFull(SdrpnError):
    """Rows do not fit in the folder for temporary files."""


class TemporaryDatabase(sqlite3.Connection):
    """A database for one process, in the folder for temporary files (``TMPDIR``).

    SQLite unlinks its file as soon as it is open, so the space is given back however the process
    ends. Threads may take turns.
    """

    def __init__(self, tables: str) -> None:
        """Create it.

        Args:
            tables: statements that create its tables.

        Raises:
            TemporaryDiskFull: here and later, if the disk takes no more.
        """
        super().__init__("", isolation_level=None, check_same_thread=False)
        self.executescript(f"{_SETTINGS}{tables}BEGIN;")

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """As of ``sqlite3.Connection``."""
        with _disk_errors_explained():
            return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        """As of ``sqlite3.Connection``."""
        with _disk_errors_explained():
            return super().executemany(*arguments)

    def executescript(self, *arguments: Any) -> sqlite3.Cursor:
        """As of ``sqlite3.Connection``."""
        with _disk_errors_explained():
            return super().executescript(*arguments)

    def __del__(self) -> None:
        self.close()


@contextmanager
def _disk_errors_explained() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        primary = error.sqlite_errorcode & 0xFF
        if primary not in _DISK_ERRORS:
            raise
        raise TemporaryDiskFull(
            f"temporary rows cannot be written ({error}): free space in the folder for temporary "
            "files (TMPDIR; /var/tmp if it is not set), or set TMPDIR to one on a larger disk; "
            "what is finished is kept"
        ) from error
