"""Files that commands write at their end: whole or not at all."""

import errno
from pathlib import Path

import pytest

from data_contracts.settings_files import ConfigError
from flows.output_files import write_file


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk left an empty report and a traceback."""
    report = tmp_path / "new" / "report.html"
    write_file(report, b"old")

    def half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(ConfigError, match=r"report\.html: cannot be written \(No space left"):
        write_file(report, b"new")
    assert report.read_bytes() == b"old"
    assert list(report.parent.iterdir()) == [report]
