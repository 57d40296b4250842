"""What a killed process leaves in the folder for temporary files, and who removes it."""

import errno
import shutil
import tempfile
import time
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from benchmarks.build_rate import measure_build, prepare
from data_contracts.artifact import ArtifactRef
from tasks.storage.scratch_folders import ScratchFull, scratch_folder
from tests.fault_injection.processes import CONTEXT
from tests.patience import wait_until


def hold_folder(temporary: str, told: Connection) -> None:
    """Keep a folder until killed."""
    tempfile.tempdir = temporary
    with scratch_folder() as folder:
        (folder / "rows").mkdir()
        (folder / "rows" / "0.arrows").write_bytes(b"rows")
        told.send(str(folder))
        time.sleep(600)


def build(temporary: str, folder: str, files: ArtifactRef) -> None:
    """Build the questions of a generated mix."""
    tempfile.tempdir = temporary
    measure_build(folder, files)


def scratch(temporary: Path) -> list[Path]:
    """Folders of the project; ``multiprocessing`` has some as well."""
    return list(temporary.glob("sdrpn-*"))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    # Its socket would lie in the folder otherwise, whose path may be too long for one.
    forkserver.ensure_running()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_the_next_process_removes_what_a_killed_one_left(temporary: Path) -> None:
    listener, told = CONTEXT.Pipe(duplex=False)
    holders = [CONTEXT.Process(target=hold_folder, args=(str(temporary), told)) for _ in range(2)]
    folders = []
    for holder in holders:
        holder.start()
        folders.append(Path(listener.recv()))
    (temporary / "sdrpn-scratch-of-another@elsewhere").mkdir()
    holders[0].kill()
    holders[0].join()
    assert folders[0].exists()
    with scratch_folder() as own:
        assert not folders[0].exists()
        assert (folders[1] / "rows" / "0.arrows").read_bytes() == b"rows"
        with scratch_folder() as other:
            assert own.exists()
            assert own != other
    holders[1].kill()
    holders[1].join()
    with scratch_folder():
        pass
    assert [left.name for left in scratch(temporary)] == ["sdrpn-scratch-of-another@elsewhere"]


def test_nothing_is_left_of_a_killed_build(tmp_path: Path, temporary: Path) -> None:
    arguments = str(temporary), str(tmp_path), prepare(str(tmp_path), 8_000)
    killed, again = (CONTEXT.Process(target=build, args=arguments) for _ in range(2))
    killed.start()
    wait_until(lambda: any(temporary.glob("*/rows/arrived/*")))
    killed.kill()
    killed.join()
    (left,) = scratch(temporary)
    assert any(left.iterdir())
    again.start()
    again.join()
    assert again.exitcode == 0
    assert scratch(temporary) == []


def test_the_true_error_is_not_hidden_by_a_folder_that_has_gone(temporary: Path) -> None:
    """A cleaner of temporary files made its own error of every other."""
    with scratch_folder() as folder:
        shutil.rmtree(folder)

    def fail() -> None:
        with scratch_folder() as gone:
            shutil.rmtree(gone)
            raise ValueError("the true cause")

    with pytest.raises(ValueError, match="the true cause"):
        fail()


def test_a_scratch_folder_on_a_full_disk_says_what_to_do(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a traceback; a full disk of the store, elsewhere, is not taken for this one."""
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left"), scratch_folder():
        raise full
    monkeypatch.setattr(
        "tasks.storage.scratch_folders._NEARLY_FULL", 1 << 60
    )  # whatever is free here
    with pytest.raises(ScratchFull, match=f"{temporary}: no space left"), scratch_folder():
        raise full
    assert scratch(temporary) == []
