"""Values of options that nothing can be done with: one line says so."""

from pathlib import Path

import pytest

from tests.e2e.command_line import sdrpn

pytestmark = pytest.mark.usefixtures("no_server")


@pytest.mark.parametrize("days", ["1000000", "1e9", "inf", "nan"])
def test_an_age_beyond_the_calendar_was_a_traceback(tmp_path: Path, days: str):
    result = sdrpn("artifacts", "gc", "--store", tmp_path, "--older-than-days", days)
    assert result.exit_code == 2
    assert "'--older-than-days': Input should be less than or equal to 36500" in result.stderr
    century = sdrpn("artifacts", "gc", "--store", tmp_path, "--older-than-days", 36500)
    assert "nothing to delete that is older than 36500 days" in century.stdout


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("run", "--data", "", "--images", "images"), "--data"),
        (("run", "--data", "mix.json", "--images", ""), "--images"),
        (("stage", "download", "-c", ""), "-c"),
        (("artifacts", "ls", "--store="), "--store"),
        (("predict", "a.png", "it", "--rpn", ""), "--rpn"),
        (("import-checkpoint", "checkpoint", "--out", ""), "--out"),
        (("--debug", "calibrate", "--model", "", "--out", "out"), "--model"),
    ],
)
def test_an_empty_value_was_an_error_of_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], option: str
):
    """Of a folder that holds no images, say: a variable of the shell was not set."""
    monkeypatch.chdir(tmp_path)
    result = sdrpn(*arguments)
    told = f"an empty value follows {option}: give one, or leave the option out"
    if "--debug" in arguments:
        assert told in str(result.exception)
        return
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {told}")
    assert list(tmp_path.iterdir()) == []
