"""Questions about many images: from a file, from a pattern, and what is wrong with a file."""

import json
import os
from pathlib import Path

import pytest

from data_contracts.settings_files import ConfigError
from tasks.artifacts.store import ArtifactStore
from tasks.asked_questions import Asked, is_many, read_asked
from tasks.storage.errors import StoreError
from tests.mixes import write_image


def test_questions_from_a_file_and_from_a_pattern(tmp_path: Path):
    store = ArtifactStore(f"{tmp_path}/store")
    for name in ("b.png", "a.png"):
        write_image(tmp_path / name)
    (tmp_path / "q.jsonl").write_text('{"image": "a.png", "question": "it", "id": "1"}\n\n')
    (row,) = read_asked(store, f"{tmp_path}/q.jsonl", None)
    assert row == Asked(image=f"{tmp_path}/a.png", question="it", id="1")
    pattern = f"{tmp_path}/*.png"
    assert is_many(pattern)
    assert not is_many(f"{tmp_path}/a.png")
    assert [r.image for r in read_asked(store, pattern, "it")] == [
        f"{tmp_path}/a.png",
        f"{tmp_path}/b.png",
    ]


def test_folders_that_a_pattern_finds_are_no_images(tmp_path: Path):
    """Every folder was a question that could not be answered."""
    store = ArtifactStore(f"{tmp_path}/store")
    write_image(tmp_path / "photos/old/a.png")
    with pytest.raises(ConfigError, match="no image matches"):
        read_asked(store, f"{tmp_path}/photos/*", "it")
    write_image(tmp_path / "photos/b.png")
    for pattern, found in {"*": ["b.png"], "**": ["b.png", "old/a.png"]}.items():
        asked = read_asked(store, f"{tmp_path}/photos/{pattern}", "it")
        assert [row.image for row in asked] == [f"{tmp_path}/photos/{name}" for name in found]


def test_a_pattern_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A shell leaves a quoted pattern its tilde."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_image(tmp_path / "photos/a.png")
    (row,) = read_asked(ArtifactStore(f"{tmp_path}/store"), "~/photos/*", "it")
    assert row.image == f"{tmp_path}/photos/a.png"


def test_a_question_mark_in_a_uri_is_no_pattern():
    """One picture with a query was taken for many."""
    assert not is_many("https://host/a.jpg?width=100&crop[0]=1")
    with pytest.raises(ConfigError, match="list URIs"):
        is_many("s3://bucket/*.jpg")
    assert is_many("s3://bucket/questions.jsonl")


def test_a_folder_of_images_says_how_they_are_asked_about(tmp_path: Path):
    """It was an image that could not be read."""
    with pytest.raises(ConfigError, match=rf"is a folder; a pattern.*: '{tmp_path}/\*\.jpg'"):
        is_many(f"{tmp_path}/")


def test_only_newlines_end_a_line_of_questions(tmp_path: Path):
    """JSON allows the other line separators within strings, and many writers leave them there."""
    asked = [Asked(image="/a.png", question=f"what {sign} is it") for sign in "\u2028\u2029\x85"]
    lines = [json.dumps(row.model_dump(), ensure_ascii=False) for row in asked]
    (tmp_path / "q.jsonl").write_bytes("\r\n".join([*lines, "", ""]).encode())
    assert read_asked(ArtifactStore(f"{tmp_path}/store"), f"{tmp_path}/q.jsonl", None) == asked


def test_files_of_questions_as_people_have_them(tmp_path: Path):
    """A number for an id, or an answer beside the question, was refused."""
    row = {"image": "/a.png", "question": "what ?", "id": 7, "answers": ["a"], "split": "val"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    asked = read_asked(ArtifactStore(f"{tmp_path}/store"), f"{tmp_path}/q.jsonl", None)
    assert asked == [Asked(image="/a.png", question="what ?", id="7")]


@pytest.mark.parametrize(("asked", "question"), [("*.png", "it"), ("q.jsonl", None)])
def test_an_image_that_no_row_can_name_was_a_traceback(
    tmp_path: Path, asked: str, question: str | None
):
    folder = tmp_path / os.fsdecode(b"\xe9t\xe9")
    write_image(folder / "a.png")
    (folder / "q.jsonl").write_text('{"image": "a.png", "question": "it"}')
    with pytest.raises(StoreError, match=r"udce9/a.png': this path is not in UTF-8.*; rename"):
        read_asked(ArtifactStore(f"{tmp_path}/store"), f"{folder}/{asked}", question)


@pytest.mark.timeout(60)
def test_questions_that_cannot_be_read_are_named(tmp_path: Path):
    """What is no file was waited for; a server that does not answer was a traceback."""
    os.mkfifo(tmp_path / "q.jsonl")
    with pytest.raises(ConfigError, match=r"q\.jsonl: cannot be read \(.*a pipe, not a file"):
        read_asked(ArtifactStore(f"{tmp_path}/store"), f"{tmp_path}/q.jsonl", None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: not a JSON object"),
        ('{"image": 3, "question": "it"}', "line 1: key 'image'"),
        ('{"image": "a", "question": 3}', "line 1: key 'question'"),
        ('{"image": "a.png"}', "line 1: key 'question' is missing"),
        ('{"image": "a", "question": ""}', "line 1: key 'question'"),
        ('{"image": "a", "question": " "}', "line 1: key 'question'.*is blank"),
        ('{"image": "a", "question": "\\ud83d?"}', "line 1: key 'question'.*not valid Unicode"),
        ("", "holds no questions"),
    ],
)
def test_a_bad_questions_file_says_which_line(tmp_path: Path, text: str, reason: str):
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_asked(ArtifactStore(f"{tmp_path}/store"), f"{tmp_path}/q.jsonl", None)
