"""True boxes as they are published, found by what a benchmark's row says of its question."""

import json
from pathlib import Path

import polars as pl
import pytest

from sdrpn_core.benchmarks.true_boxes import parse_true_boxes
from tasks.artifacts.store import ArtifactStore
from tasks.sources.true_box_files import TrueBoxError, read_true_boxes


def test_one_box_by_id_as_corners_or_with_its_size():
    """TextVQA's are x, y, width and height under another name of the id."""
    ours = {"question_id": 34602, "box": [1, 2, 31, 22]}
    textvqa = {"dataset_id": "34603", "bbox": [1, 2, 30, 20], "question": "what?"}
    boxes = parse_true_boxes([ours, textvqa])
    assert boxes.find("34602", "", "") == (1, 2, 31, 22)
    assert boxes.find("34603", "", "") == (1, 2, 31, 22)
    assert boxes.find("34604", "what?", "") is None


def test_several_targets_become_the_box_that_holds_them_all():
    vstar = {"question": "Is the dog left of the cat?", "bbox": [[10, 10, 5, 5], [40, 20, 10, 10]]}
    boxes = parse_true_boxes([{**vstar, "target_object": ["dog", "cat"]}])
    assert boxes.find("7", "is the dog left  of the cat? ", "any.jpg") == (10, 10, 50, 30)


def test_lines_of_one_question_become_the_box_that_holds_them_all():
    """The last line stood for all, silently."""
    targets = [[1, 2, 9, 8], [40, 20, 50, 30]]
    boxes = parse_true_boxes([{"question_id": 7, "box": box} for box in targets])
    assert boxes.find("7", "", "") == (1, 2, 50, 30)
    alone = parse_true_boxes([{"question_id": 7, "box": [1, 2, 50, 30]}])
    assert boxes.to_json() == alone.to_json(), "identity is that of the box"


def test_visual_cot_is_matched_by_image_and_question():
    rows = [
        {"image": f"{name}.jpg", "question": "What does it say?", "bboxs": [[x, 0, x + 9, 9]]}
        for x, name in enumerate(("aa", "bb"))
    ]
    boxes = parse_true_boxes(rows)
    assert boxes.find("1", "what does it say?", "bb") == (1, 0, 10, 9)
    assert boxes.find("1", "what does it say?", "folder/aa.png") == (0, 0, 9, 9)
    assert boxes.find("1", "what does it say?", "cc") is None


def test_a_question_about_two_places_has_no_box():
    rows = [{"question": "What?", "bbox": [[x, 0, 5, 5]]} for x in (0, 1)]
    assert parse_true_boxes(rows).find("1", "what?", "") is None


@pytest.mark.parametrize("name", ["bbox", "bboxs"])
def test_a_row_without_boxes_does_not_stop_the_others(name: str):
    rows = [{"question": "What?", name: []}, {"question_id": "a", "box": [0, 0, 2, 2]}]
    found = parse_true_boxes(rows)
    assert found.find("1", "what?", "") is None
    assert found.find("a", "", "") == (0, 0, 2, 2)


def test_files_of_every_kind(memory_store: ArtifactStore, tmp_path: Path):
    row = {"question_id": "a", "box": [0, 0, 2, 2]}
    (tmp_path / "b.json").write_text(json.dumps([row]))
    (tmp_path / "b.jsonl").write_text(json.dumps(row) + "\n")
    pl.DataFrame({"dataset_id": ["a"], "bbox": [[0, 0, 2, 2]], "image": [b"..."]}).write_parquet(
        tmp_path / "b.parquet"
    )
    vstar = tmp_path / "vstar"
    (vstar / "direct_attributes").mkdir(parents=True)
    annotation = {"question": "What?", "bbox": [[0, 0, 2, 2]], "target_object": ["cup"]}
    (vstar / "direct_attributes/sa_1.json").write_text(json.dumps(annotation))
    listed = {"image": "direct_attributes/sa_1.jpg", "question_id": "a", "text": "What? (A) x"}
    (vstar / "test_questions.jsonl").write_text(json.dumps(listed) + "\n")
    for name in ("b.json", "b.jsonl", "b.parquet", "vstar"):
        assert read_true_boxes(memory_store, f"{tmp_path}/{name}").find("a", "", "") == (0, 0, 2, 2)
    (vstar / "test_questions.jsonl").unlink()
    assert read_true_boxes(memory_store, str(vstar)).find("9", "what? ", "") == (0, 0, 2, 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"question_id": 1, "box": [0, 0, 0, 9]}', "row 0.*no area"),
        ('{"question_id": 1, "box": [0, 0, NaN, 9]}', "row 0.*not of finite numbers"),
        ('{"question_id": 1, "bboxs": [[0, 0, 9, 9], [1, NaN, 2, 2]]}', "row 0.*not of finite"),
        ('{"question_id": 1, "box": [0, 0, 9]}', "row 0"),
        ('{"question_id": 1}', "row 0.*bbox"),
        ('{"question_id": 1, "bbox": [[]]}', "row 0"),
        ("nonsense", "no true boxes can be read"),
        ("[1, 2]", "row 0: a list, not an object"),
        (f'{{"question_id": 1, "box": [0, 0, {10**400}, 1]}}', "too large"),
    ],
)
def test_what_is_wrong_is_said(memory_store: ArtifactStore, tmp_path: Path, text: str, reason: str):
    (tmp_path / "b.jsonl").write_text(text)
    with pytest.raises(TrueBoxError, match=reason):
        read_true_boxes(memory_store, str(tmp_path / "b.jsonl"))
