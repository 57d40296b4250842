"""Rows beyond memory lie on disk, and nothing is left of them."""

import os
import sqlite3
from pathlib import Path

import pytest

from benchmarks.build_rate import in_own_process, peak_mib
from sdrpn_core.temporary_database import TemporaryDatabase, TemporaryDiskFull

NUM_ROWS, ROW_BYTES = 64_000, 1000


def fill(folder: str) -> dict[str, float]:
    """Write more than may stay in memory; what is in the folder, and memory taken."""
    before = peak_mib()
    database = TemporaryDatabase("CREATE TABLE row (number INTEGER, data BLOB);")
    rows = ((number, os.urandom(ROW_BYTES)) for number in range(NUM_ROWS))
    database.executemany("INSERT INTO row VALUES (?, ?)", rows)
    (last,) = database.execute("SELECT number FROM row ORDER BY data, number").fetchone()
    return {
        # Some versions of torch make a folder there as they are imported.
        "files": sum(path.is_file() for path in Path(folder).iterdir()),
        "on_disk": sum(_sizes(folder)) / 2**20,
        "memory": peak_mib() - before,
        "number": last,
    }


def _sizes(folder: str) -> list[int]:
    """Sizes of the files that this process has open in a folder, though they have no name there."""
    opened = [
        (int(number), Path(f"/proc/self/fd/{number}")) for number in os.listdir("/proc/self/fd")
    ]
    named = [(number, os.readlink(link)) for number, link in opened if link.is_symlink()]
    return [os.fstat(number).st_size for number, name in named if name.startswith(folder)]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts a process's files by Linux")
def test_rows_are_on_disk_in_a_file_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    found = in_own_process(fill, str(tmp_path))
    assert found["files"] == 0
    assert found["on_disk"] > NUM_ROWS * ROW_BYTES / 2**20 / 2
    assert found["memory"] < NUM_ROWS * ROW_BYTES / 2**20
    assert not any(path.is_file() for path in tmp_path.iterdir())


def test_a_database_on_a_full_disk_says_what_to_do() -> None:
    """It was a traceback that named no place."""
    database = TemporaryDatabase("CREATE TABLE row (data BLOB);")
    database.execute("PRAGMA max_page_count = 20")
    rows = [(os.urandom(ROW_BYTES),) for _ in range(1000)]
    with pytest.raises(TemporaryDiskFull, match="free space in the folder for temporary files"):
        database.executemany("INSERT INTO row VALUES (?)", rows)
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        database.execute("SELECT * FROM other")
