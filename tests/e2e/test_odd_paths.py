"""Paths on the command line that nobody can use: one line says so."""

import os
import shlex
import tempfile
from pathlib import Path

import pytest

from tests.e2e.command_line import sdrpn
from tests.mixes import write_small_mix
from tests.privileges import given_away, without_privileges

pytestmark = pytest.mark.usefixtures("no_server")
TOO_LONG = "n" * 300
LATIN_1 = os.fsdecode("\u00e9t\u00e9".encode("latin-1"))
"""A folder of a machine that wrote names in another encoding."""


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


@pytest.mark.parametrize("command", [("run", "--dry-run"), ("stage", "build-jsonl")])
def test_a_folder_that_no_row_can_name_was_a_traceback(tmp_path: Path, command: tuple[str, ...]):
    """And the plan of the same run said that all was well."""
    write_small_mix(tmp_path / LATIN_1)
    images, store = tmp_path / LATIN_1 / "images", tmp_path / "store"
    records = tmp_path / LATIN_1 / "mix.json"
    result = sdrpn(*command, "--data", records, "--images", images, "--store", store)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {str(images)!r}: this path is not in UTF-8")
    assert "Traceback" not in result.output


def test_files_go_into_a_folder_of_another_encoding(tmp_path: Path):
    """They were written, and saying so was a traceback."""
    result = sdrpn("scenes", tmp_path / LATIN_1, "--num-images", 1)
    assert result.exit_code == 0
    assert os.fsencode(f"1 image in {tmp_path}/{LATIN_1}/images\n") in result.stdout_bytes


def test_a_checkpoint_is_not_exported_to_where_its_tokenizer_cannot_be(tmp_path: Path):
    """It was a traceback, after all of the weights had been written."""
    result = sdrpn("export", "--out", tmp_path / LATIN_1)
    assert result.exit_code == 1
    assert "this path is not in UTF-8" in result.stderr
    assert not (tmp_path / LATIN_1).exists()


def test_a_quoted_tilde_was_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Sources and stores looked at home, where what was written was not."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    result = sdrpn("scenes", "~/my scenes", "--num-images", 1)
    assert result.exit_code == 0
    assert os.listdir(tmp_path) == ["home"]
    folder = tmp_path / "home/my scenes"
    hint = result.stdout.splitlines()[-1].removeprefix("use them: ")
    data = ["--data", f"{folder}/mix.json", "--images", f"{folder}/images"]
    assert shlex.split(hint) == ["sdrpn", "run", *data, "--store", "my scenes_artifacts"]
