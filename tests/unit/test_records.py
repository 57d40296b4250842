"""Records: nothing is dropped, ids follow content, and what is unusable says why."""

import random
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from data_contracts.configs import RecordsConfig
from data_contracts.registry import validate
from sdrpn_core.records import Row, SourceFile, build_records, image_path
from tasks.sources.record_buckets import RecordBuckets

SUFFIX = "\nAnswer the question using a single word or phrase."


def record(name: str = "1", image: Any = "gqa/images/1.jpg", *turns: tuple[str, str]) -> Any:
    turns = turns or (("human", f"<image>\nWhat colour is it?{SUFFIX}"), ("gpt", "Red"))
    talk = [{"from": speaker, "value": text} for speaker, text in turns]
    return {"id": name, "image": image, "conversations": talk}


def files(*paths: str) -> dict[str, SourceFile]:
    return {
        path: SourceFile(f"download/x/{path}", sha256(path.encode()).hexdigest(), 9)
        for path in paths
    }


FILES = files("gqa/images/1.jpg", "ocr_vqa/images/2.jpg", "mine/3.png", "4.png")


def asked(number: int) -> Any:
    """Records that ask different things of one picture."""
    return record(str(number), "4.png", ("human", f"What is number {number}?"))


def build(*records: Any, **settings: Any) -> list[Row]:
    chosen = RecordsConfig(**settings)
    with TemporaryDirectory() as folder:
        rows = RecordBuckets(Path(folder) / "rows", num_buckets=3)
        for one in records:
            rows.add(build_records([one], "mix", chosen, FILES))
        frame = rows.frame(range(rows.settle(chosen.max_records)))
    return validate(frame, "qa_record.v1").to_dicts()


def only(*records: Any, **settings: Any) -> Row:
    (row,) = build(*records, **settings)
    return row


def test_a_mix_record_becomes_a_question():
    row = only(record())
    assert row["question"] == f"What colour is it?{SUFFIX}"
    assert row["answers"] == ["Red"]
    assert (row["dataset"], row["source_id"], row["turn"], row["kind"]) == (
        "gqa",
        "1",
        0,
        "natural",
    )
    assert row["image_uri"] == FILES["gqa/images/1.jpg"].uri
    assert row["image_sha256"] == FILES["gqa/images/1.jpg"].sha256
    assert (row["status"], row["reason"]) == ("ok", "")


@pytest.mark.parametrize("image", [{"bytes": "x" * 1_000_000}, "x" * 1_000_000])
def test_a_reason_does_not_hold_the_image(image: object):
    """Each row had all of it, and so did the warning about the first."""
    (row,) = build(record("1", image))
    assert row["reason"].endswith("xxx...")
    assert len(row["reason"]) < 6000


@pytest.mark.parametrize(
    ("path", "dataset", "kind"),
    [
        ("ocr_vqa/images/2.jpg", "ocr_vqa", "textual"),
        ("mine/3.png", "mine", "natural"),
        ("4.png", "mix", "natural"),
        ("./mine//3.png", "mine", "natural"),
    ],
)
def test_dataset_is_the_first_folder_and_decides_the_kind(path: str, dataset: str, kind: str):
    row = only(record(image=path))
    assert (row["dataset"], row["kind"], row["status"]) == (dataset, kind, "ok")


@pytest.mark.parametrize(
    "value",
    ["<image>\nWhat is it?", "What is it?\n<image>", "<image> What is it?", "What <image> is it?"],
)
def test_image_marker_is_removed_wherever_it_stands(value: str):
    assert only(record("1", "4.png", ("human", value)))["question"] == "What is it?"


def test_first_turn_or_every_turn():
    talk = (("human", "<image>\nA?"), ("gpt", "a"), ("human", "B?"), ("gpt", "b"), ("human", "C?"))
    conversation = record("1", "4.png", *talk)
    assert [row["question"] for row in build(conversation)] == ["A?"]
    rows = sorted(build(conversation, turns="all"), key=lambda row: row["turn"])
    assert [(row["turn"], row["question"], row["answers"]) for row in rows] == [
        (0, "A?", ["a"]),
        (1, "B?", ["b"]),
        (2, "C?", []),
    ]


@pytest.mark.parametrize(
    ("broken", "status", "reason"),
    [
        ("text", "malformed", "a str, not an object"),
        ({"id": 7, "conversations": []}, "text_only", "no image"),
        (record(image=["4.png", "mine/3.png"]), "malformed", "2 images; only one"),
        (record(image=5), "malformed", "image is 5"),
        (record(image="/etc/passwd"), "malformed", "not a path below the folder"),
        (record(image="gqa/../../secret.jpg"), "malformed", "not a path below the folder"),
        (record(image="https://host/a.jpg"), "malformed", "not a path below the folder"),
        (record(image="gqa/images/9.jpg"), "missing_image", "gqa/images/9.jpg"),
        ({"id": 7, "image": "4.png"}, "malformed", "conversations is not a list"),
        (record("1", "4.png", ("human", None)), "malformed", "lacks 'from' or 'value'"),
        (record("1", "4.png", ("human", "\ud800")), "malformed", "not valid Unicode"),
        (record("1", "4.png", ("gpt", "Red")), "no_question", "no turn is human"),
        (record("1", "4.png", ("human", "<image>\n")), "no_question", "turn 0 asks nothing"),
    ],
)
def test_what_cannot_be_used_stays_as_a_row_that_says_why(broken: Any, status: str, reason: str):
    row = only(broken)
    assert row["status"] == status
    assert reason in row["reason"]


def test_an_absolute_path_is_told_what_it_is_to_be_relative_to():
    """It was refused without a word on what would do."""
    reason = only(record(image="/data/gqa/1.jpg"))["reason"]
    assert reason.endswith("it is to be relative to the source's `images` (--images)")


def test_a_list_of_one_image_is_an_image():
    assert only(record(image=["4.png"]))["status"] == "ok"
    assert image_path(record(image=["4.png"])) == "4.png"


def test_image_that_cannot_be_decoded_is_unreadable():
    empty = {"4.png": SourceFile("u", "0" * 64, 0, "the file is empty")}
    (row,) = build_records([record(image="4.png")], "mix", RecordsConfig(), empty)
    assert (row["status"], row["reason"]) == (
        "unreadable_image",
        "image '4.png': the file is empty",
    )


def test_ids_do_not_depend_on_position():
    """The reference numbers questions by list position, so they shift when the source changes."""
    records = [record(str(number)) for number in range(20)]
    shuffled = records.copy()
    random.Random(3).shuffle(shuffled)
    ids = {row["source_id"]: row["question_id"] for row in build(*records)}
    assert len(set(ids.values())) == 20
    assert {row["source_id"]: row["question_id"] for row in build(*shuffled, record("99"))} == {
        **ids,
        "99": only(record("99"))["question_id"],
    }


def test_id_changes_with_the_image_bytes():
    """Generated sets share ids, paths and questions but not pictures."""
    path = "gqa/images/1.jpg"
    other = {path: SourceFile(FILES[path].uri, "f" * 64, 9)}
    (changed,) = build_records([record()], "mix", RecordsConfig(), other)
    assert changed["question_id"] != only(record())["question_id"]


def test_repeated_question_is_flagged_and_keeps_a_stable_id():
    rows = build(record(), record(), record())
    assert sorted(row["status"] for row in rows) == ["duplicate", "duplicate", "ok"]
    assert len({row["question_id"] for row in rows}) == 3
    assert {row["question_id"] for row in rows} == {
        row["question_id"] for row in build(record(), record("2"), record(), record())
    } - {only(record("2"))["question_id"]}
    first = next(row["question_id"] for row in rows if row["status"] == "ok")
    assert all(first in row["reason"] for row in rows if row["status"] == "duplicate")


def test_repeated_broken_records_are_all_kept():
    assert [row["status"] for row in build("x", "x", "x")] == ["malformed"] * 3


def test_subset_is_fixed_and_grows_without_changing():
    records = [asked(number) for number in range(50)]
    chosen = {
        size: {r["source_id"] for r in build(*records, max_records=size)} for size in (10, 20)
    }
    assert len(chosen[10]) == 10
    assert chosen[10] < chosen[20]
    assert chosen[10] != {str(number) for number in range(10)}
    assert chosen[10] == {r["source_id"] for r in build(*records[::-1], max_records=10)}


def test_subset_counts_usable_records_only():
    records = [asked(number) for number in range(5)]
    rows = build(*records, "x", "y", max_records=3)
    assert sorted(row["status"] for row in rows) == ["malformed", "malformed", "ok", "ok", "ok"]
