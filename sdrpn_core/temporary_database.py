"""Rows of any number at hand in little memory: a database on disk that leaves nothing behind."""

import sqlite3

_CACHE_KIB = 1 << 14
# One process writes it once and alone, so nothing in it need survive a crash.
_SETTINGS = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -{_CACHE_KIB};
PRAGMA temp_store = FILE;
"""


class TemporaryDatabase(sqlite3.Connection):
    """A database for one process, in the folder for temporary files (``TMPDIR``).

    SQLite unlinks its file as soon as it is open, so the space is given back however the process
    ends. Threads may take turns.
    """

    def __init__(self, tables: str) -> None:
        """Create it.

        Args:
            tables: statements that create its tables.
        """
        super().__init__("", isolation_level=None, check_same_thread=False)
        self.executescript(f"{_SETTINGS}{tables}BEGIN;")

    def __del__(self) -> None:
        self.close()
