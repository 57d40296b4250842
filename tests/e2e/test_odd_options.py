"""Values of options that nothing can be done with: one line says so."""

import json
from pathlib import Path

import pytest

from tests.e2e.command_line import sdrpn
from tests.mixes import mix_record, write_image

pytestmark = pytest.mark.usefixtures("no_server")

DATA = ("--data", "mix.json", "--images", "images")


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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run", "--store", "s3:/bucket"), "lacks '://'"),
        (("run", "--store", "s4://bucket"), "Protocol not known: s4"),
        (("run", "--data", "mix.json", "--images", "s4://bucket"), "Protocol not known: s4"),
        (("run", "--data", "s4://b/mix.json", "--images", "images"), "Protocol not known: s4"),
        (("stage", "merge-labels", "--device", "gpu"), "device 'gpu' cannot be used"),
        (("run", "--dry-run", "--device", "gpu"), "device 'gpu' cannot be used"),
        (("run", "--dry-run", "--runtime", "no_map.yaml"), "device_map is empty"),
        (("run", "--dry-run", "--runtime", "odd_map.yaml"), "device 'gpu:0' cannot be used"),
        (("run", "--dry-run", "--data", "s4://b/m.json", "--images", "images"), "not known: s4"),
        (("predict", "images/a.png", "it", "--dtype", "bf16"), "dtype 'bf16' is not known"),
    ],
)
def test_what_no_machine_has_was_taken_for_what_fails_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
):
    """The exit status was that of a server which is silent for a while: 1."""
    write_image(tmp_path / "images/a.png")
    (tmp_path / "mix.json").write_text(json.dumps([mix_record("a", "a.png")]))
    (tmp_path / "no_map.yaml").write_text("device_map: {}")
    (tmp_path / "odd_map.yaml").write_text("device_map: {model: 0, lm_head: 'gpu:0'}")
    monkeypatch.chdir(tmp_path)
    own = () if "--data" in arguments or "predict" in arguments else DATA
    result = sdrpn(*arguments, *own)
    assert result.exit_code == 2, result.output
    assert told in result.stderr


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("calibrate", "--model", "reference", "--out", "out", "--scenes", 11), "--scenes"),
        (("calibrate", "--model", "reference", "--out", "out", "--method", "box"), "--method"),
        (("attention", "a.png", "it", "--dtype", "bf16"), "--dtype"),
        (("scenes", "out", "--print-scale", "0"), "--print-scale"),
        (("scenes", "out", "--print-scale", "inf"), "--print-scale"),
    ],
)
def test_a_key_of_settings_was_named_and_not_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], option: str
):
    monkeypatch.chdir(tmp_path)
    result = sdrpn(*arguments)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}': " in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ("artifacts", "ls"),
        ("artifacts", "gc"),
        ("artifacts", "show", f"download/{'0' * 20}"),
        ("labels", "history"),
    ],
)
def test_a_store_that_is_not_there_was_an_empty_one(tmp_path: Path, command: tuple[str, ...]):
    """Nothing told a mistyped name from a store that nothing was made in."""
    result = sdrpn(*command, "--store", tmp_path / "atrifacts")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/atrifacts: no store is there; check --store")
    assert list(tmp_path.iterdir()) == []
    assert sdrpn("artifacts", "ls", "--store", tmp_path).stdout == f"no artifacts in {tmp_path}\n"
