"""Many questions: one row each whatever happens."""

import re
import shutil
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest
import torch
from PIL import Image

from data_contracts.settings_files import ConfigError
from sdrpn_core.pipeline import ZoomPipeline
from tasks.artifacts.device_memory import DeviceMemoryFull
from tasks.asked_questions import Asked
from tasks.predict_files import picture_bytes
from tasks.predict_many import ManyAnswers
from tests.file_server import Answer, file_server
from tests.mixes import write_image
from tests.patience import PATIENCE_SECONDS
from tests.tasks.many_questions import NUM_QUESTIONS, answer, drawn_in, rows


def test_rows_are_in_order_and_equal_single_answers(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path
):
    output = tmp_path / "out" / "answers.jsonl"
    assert answer(pipeline, asked, output) == ManyAnswers(NUM_QUESTIONS, 0, 0)
    found = rows(output)
    assert [row["id"] for row in found] == [row.id for row in asked]
    for row in found:
        image = Image.open(row["image"])
        (alone,) = pipeline.answer([image], [row["question"]], max_new_tokens=4)
        assert (row["answer"], row["decision"]) == (alone.text, alone.decision.value)
        assert len(row["boxes"]) == len(alone.boxes)
    assert sorted(p.name for p in output.parent.iterdir() if p.is_file()) == [
        "answers.jsonl",
        "answers.jsonl.request",
    ]


def test_what_cannot_be_answered_is_a_row_with_a_reason(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path
):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    bad = [
        asked[0],
        Asked(image=f"{tmp_path}/gone.png", question="it"),
        Asked(image=f"{tmp_path}/broken.png", question="it"),
        Asked(image=asked[0].image, question="what <image> it"),
        asked[1],
    ]
    output = tmp_path / "answers.jsonl"
    done = answer(pipeline, bad, output, rows_per_part=5)
    assert done.num_refused == 3
    found = rows(output)
    assert [row["answer"] is None for row in found] == [False, True, True, True, False]
    assert "no such image" in found[1]["error"]
    assert "not an image" in found[2]["error"]
    refusal = "the question contains the image placeholder: 'what <image> it'"  # not its call's 0th
    assert found[3]["error"] == refusal


def test_a_question_that_cannot_be_asked_leaves_its_batch_whole(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The others of its batch were asked one by one."""
    spelt = Asked(image=asked[0].image, question="what <image> it")
    num_asked: list[int] = []
    ask = pipeline.answer

    def watched(images: Any, questions: Any, **more: Any) -> Any:
        num_asked.append(len(questions))
        return ask(images, questions, **more)

    monkeypatch.setattr(pipeline, "answer", watched)
    mixed = [asked[0], spelt, *asked[1:3]]
    done = answer(pipeline, mixed, tmp_path / "answers.jsonl", rows_per_part=4)
    assert done.num_refused == 1
    assert num_asked == [3]


def test_a_batch_that_is_too_large_for_the_device_is_made_smaller_for_good(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The whole run stopped, and its user had to guess a size that fits."""
    tried: list[int] = []
    fits = pipeline.answer

    def with_little_memory(images: Any, questions: Any, *, batch_size: int, **more: Any) -> Any:
        tried.append(batch_size)
        if batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return fits(images, questions, batch_size=batch_size, **more)

    monkeypatch.setattr(pipeline, "answer", with_little_memory)
    answer(pipeline, asked, tmp_path / "little.jsonl", batch_size=8)
    assert tried == [8, 2, 2, 2, 2]
    monkeypatch.undo()
    answer(pipeline, asked, tmp_path / "enough.jsonl", batch_size=8)
    assert rows(tmp_path / "little.jsonl") == rows(tmp_path / "enough.jsonl")


def test_a_batch_that_was_not_full_is_not_tried_again_as_it_was(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Three questions at 16 a time were tried at 8 and at 4 before at 2."""
    tried: list[int] = []

    def full(images: Any, questions: Any, *, batch_size: int, **more: Any) -> Any:
        tried.append(batch_size)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")

    monkeypatch.setattr(pipeline, "answer", full)
    with pytest.raises(DeviceMemoryFull, match="even a batch of 1"):
        answer(pipeline, asked, tmp_path / "little.jsonl", batch_size=16)
    assert tried == [16, 2, 1, 1, 1]


def test_a_question_that_does_not_fit_leaves_the_others_their_answers(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It ended the run, which ended there again and again: nothing after it was ever answered."""
    asked = [*asked[:3], Asked(image=asked[0].image, question="red " * 50), *asked[3:]]
    tried: list[int] = []
    fits = pipeline.answer

    def with_little_memory(images: Any, questions: Any, *, batch_size: int, **more: Any) -> Any:
        tried.append(batch_size)
        if asked[3].question in questions:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return fits(images, questions, batch_size=batch_size, **more)

    monkeypatch.setattr(pipeline, "answer", with_little_memory)
    output = tmp_path / "little.jsonl"
    done = answer(pipeline, asked, output, batch_size=4, rows_per_part=4)
    assert (done.num_questions, done.num_refused) == (len(asked), 1)
    num_later_parts = -(-len(asked) // 4) - 1
    assert tried == [4, 2, 1, 1, 1, 1] + [4] * num_later_parts, "the others go on as before"
    (refused,) = [row for row in rows(output) if row["error"] is not None]
    assert refused["question"] == asked[3].question
    assert "does not hold even a batch of 1" in refused["error"]
    assert answer(pipeline, asked, output, batch_size=4, rows_per_part=4).num_refused == 1

    monkeypatch.undo()
    again = answer(pipeline, asked, output, batch_size=4, rows_per_part=4)
    assert (again.num_refused, again.num_reused) == (0, len(asked) - 1)


def test_images_of_a_part_are_fetched_side_by_side(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path
):
    """A server took its time for one after the other."""
    all_asked_for = Barrier(3, timeout=PATIENCE_SECONDS)
    with file_server() as server:
        for number in range(3):
            picture = Path(asked[2 * number].image).read_bytes()
            server.add(
                f"/{number}.png",
                picture,
                behave=lambda number, wanted: Answer(wait=all_asked_for.wait),
            )
        remote = [Asked(image=server.url(f"/{n}.png"), question="what is it ?") for n in range(3)]
        done = answer(pipeline, remote, tmp_path / "answers.jsonl")
    assert done == ManyAnswers(3, 0, 0)


def test_the_next_parts_images_are_read_while_this_one_is_answered(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The model waited for every part's images before it went on."""
    is_read = [Event() for _ in range(NUM_QUESTIONS // 2)]
    answered: list[int] = []
    fits = pipeline.answer

    def after_the_next_is_read(images: Any, questions: Any, **more: Any) -> Any:
        answered.append(len(answered))
        if len(answered) < len(is_read):
            assert is_read[len(answered)].wait(PATIENCE_SECONDS)
        return fits(images, questions, **more)

    monkeypatch.setattr(pipeline, "answer", after_the_next_is_read)
    with file_server() as server:
        for number, event in enumerate(is_read):
            picture = Path(asked[2 * number].image).read_bytes()

            def behave(number: int, wanted: Any, event: Event = event) -> Answer:
                return Answer(wait=event.set)

            server.add(f"/{number}.png", picture, behave=behave)
        remote = [Asked(image=server.url(f"/{n}.png"), question="it") for n in range(len(is_read))]
        answer(pipeline, remote, tmp_path / "answers.jsonl", rows_per_part=1)
    assert len(answered) == len(is_read)


@pytest.mark.parametrize(
    "address",
    [
        "foo://bucket/a.png",
        "https://[half/a.png",
        "https://127.0.0.1:9/a.png",
        "{folder}/0.png#bytes=0-999999",
    ],
)
def test_an_address_of_no_use_takes_nothing_with_it(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path, address: str
):
    """The run ended with an error at the same part, however often it was begun again."""
    bad = Asked(image=address.format(folder=tmp_path), question="it")
    done = answer(pipeline, [asked[0], bad, asked[1]], tmp_path / "answers.jsonl")
    assert done == ManyAnswers(3, 1, 0)
    assert bad.image in rows(tmp_path / "answers.jsonl")[1]["error"]


def test_pictures_of_names_that_no_folder_takes(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path
):
    """The run ended with an error there, and what it had answered of the part was lost."""
    names = ["\N{PILE OF POO}" * 62 + ".png", "a\\b:c.png"]
    for number, name in enumerate(names):
        write_image(tmp_path / name, number)
    odd = [Asked(image=f"{tmp_path}/{name}", question="it") for name in names]
    pictures = tmp_path / "pictures"
    answer(pipeline, odd, tmp_path / "answers.jsonl", overlays=str(pictures))
    first, second = drawn_in(pictures)
    assert re.fullmatch(r"000000-_+\.png", first)
    assert second == "000001-a_b_c.png"


def test_pictures_are_drawn_for_every_answer(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path
):
    pictures = tmp_path / "pictures"
    answer(pipeline, asked[:3], tmp_path / "answers.jsonl", overlays=str(pictures))
    assert drawn_in(pictures) == [
        "000000-0.png",
        "000001-0.png",
        "000002-1.png",
    ]
    assert Image.open(pictures / "000002-1.png").size == Image.open(asked[2].image).size


def test_the_pictures_of_two_outputs_are_not_mixed(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path
):
    """Those of the second took the place of the first's, without a word."""
    pictures = tmp_path / "pictures"
    for _ in range(2):  # the same command again draws into its own
        answer(pipeline, asked[:2], tmp_path / "one.jsonl", overlays=f"{pictures}/")
    drawn = {path.name: path.read_bytes() for path in pictures.iterdir()}
    with pytest.raises(ConfigError, match=r"has the pictures of another --output .*; name another"):
        answer(pipeline, asked[::-1], tmp_path / "two.jsonl", overlays=str(pictures))
    assert {path.name: path.read_bytes() for path in pictures.iterdir()} == drawn
    assert not (tmp_path / "two.jsonl").exists()


def test_nothing_is_written_beside_the_folder_of_pictures(
    pipeline: ZoomPipeline, asked: list[Asked], tmp_path: Path
):
    """A file was: where only the folder may be written to, the run ended once the model was there,
    and a folder that was deleted and begun anew counted as the other output's."""
    pictures, output = tmp_path / "apart" / "pictures", tmp_path / "one.jsonl"
    answer(pipeline, asked[:1], output, overlays=str(pictures))
    assert drawn_in(pictures) == ["000000-0.png"]
    assert list(pictures.parent.iterdir()) == [pictures]
    shutil.rmtree(pictures)
    answer(pipeline, asked[:1], tmp_path / "two.jsonl", overlays=str(pictures))
    assert drawn_in(pictures) == ["000000-0.png"]


@pytest.mark.parametrize(("suffix", "side"), [(".webp", 16384), (".jpg", 65501), (".GIF", 65536)])
def test_a_picture_too_long_for_its_format_was_a_traceback(suffix: str, side: int) -> None:
    """After the question was answered: formats end at different lengths."""
    with pytest.raises(ConfigError, match=rf"^{side} x 1 .* in \{suffix}: name a \.png$"):
        picture_bytes(Image.new("RGB", (side, 1)), suffix)
    assert picture_bytes(Image.new("RGB", (side, 1)), ".png")
