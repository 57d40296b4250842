"""``sdrpn predict``: the store's newest RPN answers a question, or the error says what to do."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_contracts.enums import Stage, ZoomDecision
from data_contracts.json_lines import json_lines
from sdrpn_core.geometry import BoxXYXY, Letterbox
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.regions import Region
from sdrpn_core.zoom.answers import ZoomAnswer
from tasks.artifacts.admin import committed_artifacts
from tasks.artifacts.store import ArtifactStore
from tasks.predict import draw_overlay, shown_lines
from tests.architecture.source_tree import CHECKOUT
from tests.e2e.command_line import sdrpn
from tests.mixes import write_image
from tests.pipelines import write_tiny_pipeline

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    write_tiny_pipeline(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        options = ("--config", folder / "config.yaml", "--store", folder / "store")
        result = sdrpn("stage", "train-rpn", *options)
    assert result.exit_code == 0, result.output
    write_image(folder / "picture.png", 7)
    return folder


def test_the_python_of_the_readme_answers_as_the_command_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (image,) = re.findall(r'Image.open\("(.*?)"\)', code)
    assert f"sdrpn predict {image} " in readme
    monkeypatch.chdir(folder)
    code = code.replace(image, "picture.png").replace('"artifacts"', '"store"')
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    (question,) = re.findall(r'^question = "(.*)"$', code, re.MULTILINE)
    asked = question.encode().decode("unicode_escape")
    result = sdrpn("predict", "picture.png", asked, "--store", "store", "--json")
    answer = json.loads(result.stdout)["answer"]
    assert answer
    assert printed.startswith(f"{answer} (")


def test_answers_with_the_newest_rpn_and_draws_it(folder: Path) -> None:
    image, overlay = folder / "picture.png", folder / "overlay.png"
    options = ("--store", folder / "store", "--overlay", overlay, "--json")
    result = sdrpn("predict", image, "what is it ?", *options)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    (trained,) = committed_artifacts(ArtifactStore(str(folder / "store")), Stage.TRAIN_RPN)
    (told,) = (line for line in result.stderr.splitlines() if line.startswith("RPN: "))
    assert re.fullmatch(
        rf"RPN: {trained.recipe.ref}, of tiny\S*, trained on [1-9]\d* questions, F1 \d\.\d\d on "
        "held-out labels",
        told,
    ), told
    size = Image.open(image).size
    assert Image.open(overlay).size == size
    assert answer["used_crop"] == bool(answer["boxes"])
    for x0, y0, x1, y1 in answer["boxes"]:
        assert 0 <= x0 < x1 <= size[0]
        assert 0 <= y0 < y1 <= size[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("picture.png", "what is it ?"),
        ("*.png", "what is it ?", "--output", "full.jsonl"),
    ],
)
def test_a_full_device_is_explained_and_the_same_command_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """It was a traceback of torch."""
    monkeypatch.chdir(folder)
    command = ("predict", *arguments, "--store", folder / "store", "--batch-size", 16)

    def fill(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")

    with monkeypatch.context() as patch:
        patch.setattr(ZoomPipeline, "answer", fill)
        result = sdrpn(*command)
    assert result.exit_code == 1
    assert "does not hold even a batch of 1" in " ".join(result.output.split())
    assert sdrpn(*command).exit_code == 0


def test_a_store_without_an_rpn_is_explained(folder: Path) -> None:
    store = folder / "empty"
    result = sdrpn("predict", folder / "picture.png", "what is it ?", "--store", store)
    assert result.exit_code == 2
    assert "no trained RPN" in result.output
    assert "sdrpn run" in result.output


def test_damaged_rpn_does_not_hide_the_newest_sound_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    store = tmp_path / "store"
    (trained,) = (folder / "store" / "train-rpn").iterdir()
    shutil.copytree(trained, store / "train-rpn" / trained.name)
    damaged = store / "train-rpn" / ("0" * 20)
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{")
    result = sdrpn("predict", folder / "picture.png", "what is it ?", "--store", store)
    assert result.exit_code == 0, result.output
    listed = sdrpn("artifacts", "ls", "--store", store)
    assert listed.exit_code == 0
    assert "damaged: " in listed.stderr
    assert trained.name in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("picture.png", "it", "--overlay", "picture.png/a.png"), "cannot be written"),
        (("picture.png", "it", "--overlay", "overlay.xyz"), "no picture can be written"),
        (("picture.png", "it", "--overlay", "overlay.psd"), "no picture can be written"),
        (("picture.png", "it", "--overlay", "overlay.xbm"), "no picture can be written"),
        (("*.png", "it", "--output", "picture.png/a.jsonl"), "is not a folder"),
        (("*.png", "it", "--output", "."), "is a folder; name a file"),
        (("*.png", "it", "--output", "a.jsonl", "--overlay", "b.png"), "many images need a folder"),
        (("picture.png", "it", "--overlay", "store/../picture.png"), "is the image itself"),
        (("*.png", "it", "--output", "a.jsonl", "--overlay", "."), "is the folder of images"),
        (("none.jsonl", "--output", "a.jsonl", "--overlay", "new"), "no such file"),
        (("none.png", "it"), "no such image"),
        (("", "it"), "the IMAGE is empty: give one"),
        (("/dev/null", "it"), "/dev/null: cannot be read as an image file (is a device or a pipe"),
    ],
)
def test_a_wrong_file_is_found_before_the_model_loads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], reason: str
) -> None:
    """It was found when the answers were to be written, after the whole run."""

    def load(*_: object) -> None:
        raise AssertionError("what answers was loaded first")

    monkeypatch.setattr("tasks.predict.PredictSetup", load)
    monkeypatch.chdir(folder)
    result = sdrpn("predict", *arguments, "--store", folder / "store")
    assert result.exit_code in (1, 2), result.output
    assert reason in " ".join(result.output.split())
    assert not (folder / "new").exists()


def test_a_missing_image_is_explained(folder: Path) -> None:
    result = sdrpn("predict", folder / "no.png", "what is it ?", "--store", folder / "store")
    assert result.exit_code == 2
    assert "no such image" in result.output


def test_an_image_whose_server_is_down_is_not_a_wrong_argument(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was said to be no image file, with the status of a command that must be mended."""
    monkeypatch.setattr("tasks.storage.http_driver._WAITS", (0.0, 0.0))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    image = f"http://127.0.0.1:{port}/a.png"  # refused, as nobody listens any more
    result = sdrpn("predict", image, "what is it ?", "--store", folder / "store")
    assert result.exit_code == 1, result.output
    assert f"{image}: cannot be reached" in result.output
    assert "asking a last time in" in caplog.text
    (folder / "asked.jsonl").write_text(json.dumps({"image": image, "question": "what is it ?"}))
    many = ("--output", folder / "unreached.jsonl", "--store", folder / "store")
    result = sdrpn("predict", folder / "asked.jsonl", *many)
    assert result.exit_code == 3, result.output
    assert "cannot be reached" in (folder / "unreached.jsonl").read_text()


def test_a_pattern_of_images_is_answered_into_a_file(folder: Path) -> None:
    for number in range(3):
        write_image(folder / "many" / f"{number}.png", number)
    output = folder / "answers.jsonl"
    options = ("--store", folder / "store", "--output", output, "--max-new-tokens", 4)
    result = sdrpn("predict", folder / "many" / "*.png", "what is it ?", *options)
    assert result.exit_code == 0, result.output
    rows = json_lines(output.read_bytes())
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    assert all(row["error"] is None for row in rows)
    again = sdrpn("predict", folder / "many" / "*.png", "what is it ?", *options)
    assert "3 answered before" in " ".join(again.output.split())


def test_a_refused_question_shows_in_the_exit_status_until_it_is_answered(
    folder: Path, tmp_path: Path
) -> None:
    """It was 0, and the question was never asked again."""
    for number in range(3):
        write_image(tmp_path / f"{number}.png", number)
    sound = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(b"")
    output = tmp_path / "answers.jsonl"
    options = ("--store", folder / "store", "--output", output, "--max-new-tokens", 2)
    ask = ("predict", tmp_path / "*.png", "what is it ?", *options)
    first = sdrpn(*ask)
    assert first.exit_code == 3, first.output
    assert f"3 questions, 1 refused, 0 answered before: {output}" in first.stdout
    assert "the same command asks them again" in first.stderr
    errors = [row["error"] for row in json_lines(output.read_bytes())]
    assert [error is None for error in errors] == [True, False, True]
    (tmp_path / "1.png").write_bytes(sound)
    again = sdrpn(*ask)
    assert again.exit_code == 0, again.output
    assert f"3 questions, 0 refused, 2 answered before: {output}" in again.stdout


def test_many_questions_tell_a_log_how_far_they_are(folder: Path, tmp_path: Path) -> None:
    """It was silent from the first question to the last."""
    write_image(tmp_path / "0.png", 0)
    options = ("--store", folder / "store", "--output", tmp_path / "a.jsonl")
    result = sdrpn("predict", tmp_path / "*.png", "what ?", *options, "--max-new-tokens", 2)
    assert "answering: done" in result.stderr


def test_ctrl_c_names_the_place_where_answers_are(folder: Path, tmp_path: Path) -> None:
    """It named the file that is written when all answers are there."""
    write_image(tmp_path / "0.png", 0)
    lines = (f'{{"image": "0.png", "question": "what is {n} ?"}}\n' for n in range(20_000))
    (tmp_path / "many.jsonl").write_text("".join(lines))
    options = ("--store", folder / "store", "--output", tmp_path / "a.jsonl")
    command = (sys.executable, "-m", "flows", "predict", tmp_path / "many.jsonl", *options)
    process = subprocess.Popen(
        [str(part) for part in (*command, "--max-new-tokens", 1)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    parts = tmp_path / "a.jsonl.parts"
    while not list(parts.glob("*.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)  # without end: pytest has a limit
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130, told
    assert f"what is answered is kept in {parts}; the same command goes on from there" in told
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "boxes", "lines"),
    [
        (" \n", (), ["(no answer)", "not zoomed: no_confident_region"]),
        ("red", (), ["red", "not zoomed: no_confident_region"]),
        ("", ((1.4, 2.0, 30.0, 40.6),), ["(no answer)", "zoomed into (1, 2, 30, 41)"]),
    ],
)
def test_an_answer_is_never_an_empty_line(text: str, boxes: tuple, lines: list[str]) -> None:
    """Nothing told a model that says nothing from a command that does nothing."""
    decision = ZoomDecision.ZOOMED if boxes else ZoomDecision.NO_CONFIDENT_REGION
    regions = tuple(Region(BoxXYXY(*box)) for box in boxes)
    answer = ZoomAnswer(text, regions, np.zeros((2, 2), np.float32), decision, 0, {})
    assert shown_lines(answer) == lines


@pytest.mark.parametrize(("text", "is_told"), [(" ", True), ("red", False)])
def test_a_model_that_answers_nothing_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, is_told: bool
) -> None:
    """`attention` told of the answer-style suffix, `predict` only that there is no answer."""
    answer = ZoomAnswer(
        text, (), np.zeros((2, 2), np.float32), ZoomDecision.IMAGE_FULLY_SEEN, 0, {}
    )
    monkeypatch.setattr(ZoomPipeline, "answer", lambda *_, **__: [answer])
    ask = ("predict", folder / "picture.png", "what is it ?", "--store", folder / "store")
    for options in ((), ("--json",)):
        result = sdrpn(*ask, *options)
        assert result.exit_code == 0, result.output
        told = "Answer the question using a single word or phrase." in result.stderr
        assert told == is_told


def test_the_overlay_is_pale_in_the_crop_outside_the_region() -> None:
    grey, letterbox = Image.new("RGB", (80, 80), (60, 60, 60)), Letterbox.square((80, 80))
    region = Region(BoxXYXY(20, 20, 60, 60), (BoxXYXY(20, 20, 60, 40),))
    answer = ZoomAnswer("", (region,), np.zeros((4, 4), np.float32), ZoomDecision.ZOOMED, 9, {})
    drawn = draw_overlay(grey, answer, letterbox)
    assert [drawn.getpixel((40, y)) == (60, 60, 60) for y in (10, 30, 50, 70)] == [
        True,
        True,
        False,
        True,
    ]


def test_a_file_of_answers_is_not_gone_on_with_by_another_zoom(folder: Path) -> None:
    write_image(folder / "one" / "0.png", 0)
    output = folder / "cheap.jsonl"
    options = ("--store", folder / "store", "--output", output, "--max-new-tokens", 2)
    ask = ("predict", folder / "one" / "*.png", "what is it ?", *options, "--withdraw-image")
    assert sdrpn(*ask).exit_code == 0
    assert "1 answered before" in " ".join(sdrpn(*ask).output.split())
    other = sdrpn(*ask[:-1])
    assert "other withdraw_image:" in " ".join(other.output.split())
    kept = sdrpn(*ask[:-1], "--keep-image")
    assert "other withdraw_image:" in " ".join(kept.output.split())
    smaller = sdrpn(*ask, "--crop-tokens", 4)
    assert "other crop_tokens:" in " ".join(smaller.output.split())


def test_the_precision_can_be_chosen(folder: Path) -> None:
    """It was float32 always, and the advice to take bfloat16 could not be followed."""
    ask = ("predict", folder / "picture.png", "what is it ?", "--store", folder / "store")
    result = sdrpn(*ask, "--device", "cpu", "--dtype", "bfloat16", "--max-new-tokens", 2)
    assert result.exit_code == 0, result.output
    wrong = sdrpn(*ask, "--dtype", "bf16")
    assert wrong.exit_code != 0
    assert "choose float32, bfloat16 or float16" in " ".join(wrong.output.split())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("picture.png",), "give a QUESTION"),
        (("picture.png", " "), "give a QUESTION"),
        # Bytes of another encoding were a traceback after the model was loaded.
        (("picture.png", "what \udca0 ?"), r"QUESTION is 'what \udca0 ?', which is not valid"),
        (("*.png", "it \udca0", "--output", "a.jsonl"), "which is not valid Unicode"),
        (("*.png", "it"), "need --output"),
        (("*.png", "it", "--output", "a.jsonl", "--json"), "--json is for one question"),
        (("none-*.png", "it", "--output", "a.jsonl"), "no image matches"),
    ],
)
def test_what_is_missing_is_said(folder: Path, arguments: tuple[str, ...], reason: str) -> None:
    first, *rest = arguments
    result = sdrpn("predict", folder / first, *rest, "--store", folder / "store")
    assert result.exit_code == 2
    assert reason in " ".join(result.output.split())
