"""Paths on the command line that nobody can use: one line says so."""

import tempfile
from pathlib import Path

import pytest

from tests.e2e.command_line import sdrpn
from tests.mixes import write_small_mix
from tests.privileges import given_away, without_privileges

pytestmark = pytest.mark.usefixtures("no_server")
TOO_LONG = "n" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--dry-run", "--config", TOO_LONG),
        ("stage", "build-jsonl", "--data", TOO_LONG, "--images", "images"),
        ("artifacts", "ls", "--store", TOO_LONG),
        ("predict", "a.png", "it", "--rpn", TOO_LONG),
        ("import-checkpoint", TOO_LONG, "--out", "rpn"),
        ("report", "--output", TOO_LONG),
    ],
)
def test_a_name_that_no_file_can_have_was_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
):
    """Every command that first looks whether there is such a file ended so."""
    write_small_mix(tmp_path)
    (tmp_path / "images/gqa/images/0.png").rename(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    result = sdrpn(*arguments)
    assert result.exit_code == 2
    assert f"{TOO_LONG}" in result.stderr
    assert "File name too long; give a shorter path" in result.stderr
    assert "Traceback" not in result.output


def test_a_file_that_may_not_be_read_was_a_traceback():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        (folder / "closed").mkdir()
        given_away(folder)
        (folder / "closed").chmod(0)
        arguments = ("run", "--dry-run", "--config", f"{name}/closed/my.yaml")
        with without_privileges():
            result, debugged = sdrpn(*arguments), sdrpn("--debug", *arguments)
        assert result.exit_code == 1
        assert result.stderr == (
            f"error: {name}/closed/my.yaml: Permission denied; give the user who runs this access "
            "to it, or name another\n"
        )
        assert isinstance(debugged.exception, PermissionError)
