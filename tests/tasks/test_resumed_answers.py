"""Many questions asked again: what is answered is kept, and never mixed with what is another's."""

import json
import os
import shutil
import signal
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from data_contracts.profiles import ModelProfile
from data_contracts.settings_files import ConfigError
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.pipeline import ZoomPipeline
from tasks.asked_questions import Asked
from tasks.predict_many import ManyAnswers
from tests.mixes import write_image
from tests.tasks.many_questions import NUM_QUESTIONS, answer, drawn_in, rows
from tests.zoom_checks import random_pipeline

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def test_again_computes_nothing(pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path):
    output = tmp_path / "answers.jsonl"
    answer(pipeline, asked, output)
    before = output.stat().st_mtime_ns
    assert answer(pipeline, asked, output).num_reused == NUM_QUESTIONS
    assert output.stat().st_mtime_ns == before


def test_a_rerun_asks_refused_questions_again(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path
):
    """They stayed refused for good, although their images had been repaired."""
    whole, output, pictures = (tmp_path / name for name in ("whole.jsonl", "a.jsonl", "pictures"))
    answer(pipeline, asked, whole)
    damaged = [Path(asked[place].image) for place in (2, 8)]
    sound = [path.read_bytes() for path in damaged]
    for path in damaged:
        path.write_bytes(b"not a picture")
    done = answer(pipeline, asked, output, overlays=str(pictures))
    assert (done.num_refused, len(drawn_in(pictures))) == (4, NUM_QUESTIONS - 4)
    before = output.stat().st_mtime_ns
    again = answer(pipeline, asked, output, overlays=str(pictures))
    assert again == ManyAnswers(NUM_QUESTIONS, 4, NUM_QUESTIONS - 4)
    assert output.stat().st_mtime_ns == before, "nothing has changed"

    damaged[0].write_bytes(sound[0])
    done = answer(pipeline, asked, output, overlays=str(pictures))
    assert done == ManyAnswers(NUM_QUESTIONS, 2, NUM_QUESTIONS - 4)
    damaged[1].write_bytes(sound[1])
    done = answer(pipeline, asked, output, overlays=str(pictures))
    assert done == ManyAnswers(NUM_QUESTIONS, 0, NUM_QUESTIONS - 2)
    assert output.read_bytes() == whole.read_bytes()
    assert len(drawn_in(pictures)) == NUM_QUESTIONS
    assert not (tmp_path / "a.jsonl.parts").exists()


def test_asking_again_goes_on_where_it_was_stopped(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path
):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "a.jsonl"
    answer(pipeline, asked, whole)
    images = [Path(asked[place].image) for place in (0, 10)]
    sound = [path.read_bytes() for path in images]
    for path in images:
        path.write_bytes(b"not a picture")
    answer(pipeline, asked, output)
    for path, data in zip(images, sound, strict=True):
        path.write_bytes(data)

    def stop(num_done: int, num_all: int) -> None:
        if num_done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(pipeline, asked, output, on_part=stop)
    images[0].unlink()  # what is answered is not asked again
    assert answer(pipeline, asked, output) == ManyAnswers(NUM_QUESTIONS, 0, NUM_QUESTIONS - 2)
    assert output.read_bytes() == whole.read_bytes()


def test_a_file_that_lost_rows_is_not_gone_on_with(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path
):
    output = tmp_path / "answers.jsonl"
    answer(pipeline, asked, output)
    output.write_text("".join(f"{line}\n" for line in output.read_text().splitlines()[:-2]))
    with pytest.raises(ConfigError, match="has 10 rows for 12 questions"):
        answer(pipeline, asked, output)


def test_a_file_whose_texts_were_unescaped_is_gone_on_with(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path
):
    """A line separator within a question was taken for the end of its row."""
    output = tmp_path / "answers.jsonl"
    asked = [asked[0].model_copy(update={"question": "what is\u2028it ?"}), *asked[1:]]
    answer(pipeline, asked, output)
    plain = [json.dumps(row, ensure_ascii=False) for row in rows(output)]
    output.write_bytes("\n".join([*plain, ""]).encode())
    assert answer(pipeline, asked, output).num_reused == NUM_QUESTIONS


@pytest.mark.parametrize("row", ["no JSON", "[]", "{}"])
def test_a_file_with_other_rows_is_not_gone_on_with(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path, row: str
):
    """Rows that were edited were a traceback."""
    output = tmp_path / "answers.jsonl"
    answer(pipeline, asked, output)
    output.write_text("\n".join([row, *output.read_text().splitlines()[1:]]))
    with pytest.raises(ConfigError, match="rows that are no answers"):
        answer(pipeline, asked, output)


@pytest.mark.parametrize(
    "change", [{"rpn": "another"}, {"max_new_tokens": 5}, {"asked": slice(0, 5)}]
)
def test_a_file_is_never_mixed(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path, change: dict[str, Any]
):
    output = tmp_path / "answers.jsonl"
    answer(pipeline, asked, output)
    other = asked[change.pop("asked")] if "asked" in change else asked
    with pytest.raises(ConfigError, match="name another --output"):
        answer(pipeline, other, output, **change)


def test_the_same_pattern_in_another_folder_is_another_question(
    pipeline: ZoomPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It was given the answers about the first folder's pictures."""
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "a.png", number)
    here = [Asked(image="a.png", question="it")]
    monkeypatch.chdir(tmp_path / "one")
    answer(pipeline, here, tmp_path / "answers.jsonl")
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(ConfigError, match="was begun with other questions"):
        answer(pipeline, here, tmp_path / "answers.jsonl")


def test_another_model_precision_or_place_of_pictures_is_named(
    profile: ModelProfile, pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path
):
    """Such a run took over the answers of the other model, and drew no pictures of them."""
    output = tmp_path / "answers.jsonl"
    answer(pipeline, asked, output)
    before = output.read_bytes()
    copy = shutil.copytree(profile.model_id, tmp_path / "copy")
    elsewhere = profile.model_copy(update={"model_id": str(copy), "revision": "0" * 40})
    others = {
        "other model, revision:": {"pipeline": load_adapter(elsewhere, device="cpu")},
        "other dtype:": {"pipeline": load_adapter(profile, device="cpu", dtype="bfloat16")},
        "other overlay:": {"overlays": f"{tmp_path}/pictures"},
    }
    for named, changed in others.items():
        adapter = changed.pop("pipeline", None)
        other = pipeline if adapter is None else random_pipeline(adapter)
        with pytest.raises(ConfigError, match=f"was begun with {named} name another --output"):
            answer(other, asked, output, **changed)
    assert output.read_bytes() == before
    assert not (tmp_path / "pictures").exists()


def test_an_earlier_releases_file_is_not_gone_on_with(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path
):
    (tmp_path / "answers.jsonl.request").write_text(f"{7:064x}")
    with pytest.raises(ConfigError, match="an earlier release"):
        answer(pipeline, asked, tmp_path / "answers.jsonl")


def test_a_users_own_file_is_not_overwritten(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path
):
    output = tmp_path / "answers.jsonl"
    output.write_text("precious\n")
    with pytest.raises(ConfigError, match="was not made by this command"):
        answer(pipeline, asked, output)
    assert output.read_text() == "precious\n"


def answer_slowly(
    profile: ModelProfile, asked: list[Asked], output: Path, reports: Connection
) -> None:
    """What the killed process runs: before each part it says so, and waits a moment."""

    def report(num_done: int, num_all: int) -> None:
        reports.send(num_done)
        time.sleep(0.2)

    pipeline = random_pipeline(load_adapter(profile, device="cpu"))
    answer(pipeline, asked, output, on_part=report)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    profile: ModelProfile, pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path
):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    answer(pipeline, asked, whole)
    mine, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=answer_slowly, args=(profile, asked, killed, theirs))
    process.start()
    assert [mine.recv() for _ in range(3)] == [0, 3, 6]
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not killed.exists()
    done = answer(pipeline, asked, killed)
    assert 6 <= done.num_reused < NUM_QUESTIONS
    assert killed.read_bytes() == whole.read_bytes()
