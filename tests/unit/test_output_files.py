"""Files that commands write at their end: whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from flows.output_files import NotWritten, write_file


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk left an empty report and a traceback."""
    report = tmp_path / "new" / "report.html"
    write_file(report, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        NotWritten,
        match=r"report\.html: cannot be written \(No space left.*mend that, or name another file",
    ):
        write_file(report, b"new")
    assert report.read_bytes() == b"old"
    assert list(report.parent.iterdir()) == [report]


def test_pipes_and_links_stay_what_they_are(tmp_path: Path) -> None:
    """``--json /dev/stdout`` is what the shell opened, not a name to give to a new file."""
    pipe, real, link = tmp_path / "pipe", tmp_path / "real", tmp_path / "link"
    os.mkfifo(pipe)
    real.write_bytes(b"old")
    link.symlink_to(real)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_file(pipe, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    write_file(link, b"new")
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
