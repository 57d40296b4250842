"""Chat data, as today's trainers write it, gives the same questions as LLaVA's format."""

import io
import json
from typing import Any

import pytest

from data_contracts.configs import RecordsConfig
from sdrpn_core.records import Row, SourceFile, build_records, image_path
from sdrpn_core.source_formats import llava_record
from tasks.sources.record_stream import read_mix

FILES = {"a/1.png": SourceFile("u", "0" * 64, 9)}
LLAVA = {
    "id": "7",
    "image": "a/1.png",
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Which colour?"},
        {"from": "gpt", "value": "Grey."},
    ],
}
SAID = ("Be brief.", "<image>\nWhat is it?", "A cat.", "Which colour?", "Grey.")
ROLES = ("system", "user", "assistant", "user", "assistant")
TURNS = [{"role": role, "content": text} for role, text in zip(ROLES, SAID, strict=True)]
IMAGE, LISTED = {"type": "image"}, {"type": "image", "image": "a/1.png"}


def in_parts(image: dict[str, str]) -> list[dict[str, Any]]:
    turns = [
        {"role": role, "content": [{"type": "text", "text": text.removeprefix("<image>\n")}]}
        for role, text in zip(ROLES, SAID, strict=True)
    ]
    turns[1]["content"].insert(0, image)
    return turns


def rows_of(record: object) -> list[Row]:
    (read,) = read_mix(io.BytesIO(json.dumps([record]).encode()), "mix.json")
    return build_records([read], "mix", RecordsConfig(turns="all"), FILES)


@pytest.mark.parametrize(
    "record",
    [
        {"id": "7", "messages": TURNS, "images": ["a/1.png"]},
        {"id": "7", "messages": TURNS, "image": "a/1.png"},
        {"id": "7", "conversations": TURNS, "image": "a/1.png"},
        {"id": "7", "messages": in_parts(IMAGE), "images": ["a/1.png"]},
        {"id": "7", "messages": in_parts(LISTED)},
        {"id": "7", "messages": in_parts(LISTED), "images": None},
        {"id": "7", "messages": in_parts(LISTED), "images": [], "image": None},
        {"id": "7", "messages": in_parts(IMAGE), "images": ["a/1.png"], "image": None},
        {"id": "7", "messages": in_parts({"type": "image", "url": "a/1.png"})},
        {"id": "7", "messages": in_parts({"type": "image_url", "image_url": {"url": "a/1.png"}})},
        {"id": "7", "conversations": LLAVA["conversations"], "images": ["a/1.png"]},
        {"id": "7", "conversations": LLAVA["conversations"], "image": None, "images": ["a/1.png"]},
        {"id": "7", "messages": TURNS, "images": ["a/1.png"], "conversations": None},
    ],
)
def test_chat_record_asks_what_llavas_does(record: object):
    rows = rows_of(LLAVA)
    assert [row["question"] for row in rows] == ["What is it?", "Which colour?"]
    assert rows_of(record) == rows


@pytest.mark.parametrize(
    ("record", "status", "reason"),
    [
        ({"messages": TURNS}, "text_only", "no image"),
        ({"messages": TURNS, "images": []}, "text_only", "no image"),
        ({"messages": TURNS, "images": ["a/1.png", "b.png"]}, "malformed", "2 images; only one"),
        ({"messages": TURNS, "images": ["/a/1.png"]}, "malformed", "not a path below the folder"),
        ({"messages": TURNS, "images": [{"bytes": ""}]}, "malformed", "image is {'bytes': ''}"),
        ({"messages": in_parts({"type": "video"}), "image": "a/1.png"}, "malformed", "lacks"),
        ({"messages": [{"role": "user"}], "image": "a/1.png"}, "malformed", "lacks"),
        ({"messages": [{"role": [], "content": ""}], "image": "a/1.png"}, "malformed", "lacks"),
        ({"messages": [*TURNS, 3], "image": "a/1.png"}, "malformed", "is not an object"),
        ({"messages": [], "image": "a/1.png"}, "malformed", "conversations is not a list"),
        ({"message": TURNS, "images": ["a/1.png"]}, "malformed", "conversations is not a list"),
    ],
)
def test_chat_record_that_cannot_be_used_says_why(record: object, status: str, reason: str):
    (row,) = rows_of(record)
    assert row["status"] == status
    assert reason in row["reason"]


def test_a_part_names_one_image_and_a_text_none():
    image = {"type": "image", "image": "a/1.png", "url": "https://host/1.png"}
    turns = in_parts(image)
    turns[1]["content"][1]["path"] = "question.txt"
    assert rows_of({"id": "7", "messages": turns, "image": ""}) == rows_of(LLAVA)


def test_an_image_that_two_turns_name_is_one():
    turns = in_parts(LISTED)
    turns[3]["content"].insert(0, LISTED)
    assert rows_of({"id": "7", "messages": turns}) == rows_of(LLAVA)


@pytest.mark.parametrize(
    "record",
    [
        LLAVA,
        3,
        {},
        {"messages": TURNS[:0]},
        {"conversations": 1},
        {**LLAVA, "images": ["b.png"]},
        {"conversations": LLAVA["conversations"]},
    ],
)
def test_other_records_are_left_as_they_are(record: object):
    assert llava_record(record) is record


def test_image_of_a_chat_is_found_before_its_questions_are_built():
    assert image_path(llava_record({"messages": in_parts(LISTED)})) == "a/1.png"
