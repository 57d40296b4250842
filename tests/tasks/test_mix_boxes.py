import json
from pathlib import Path

import pytest

from tasks.artifacts.store import ArtifactStore
from tasks.download import download
from tasks.sources.mix_boxes import parse_boxes
from tasks.sources.record_stream import SourceError
from tests.artifacts import stage_run
from tests.mixes import write_small_mix

GOOD = {"image": "gqa/1.png", "turn": 0, "box": [1, 2, 3.5, 4]}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is not JSON"),
        ("[1]", "Input should be a valid dictionary"),
        (json.dumps({"image": "a.png", "box": [1, 2, 3, 4]}), "turn: Field required"),
        (json.dumps(GOOD | {"box": [1, 2, 3]}), "box.3: Field required"),
        (json.dumps(GOOD | {"box": [1, 2, "x", 4]}), "box.2: Input should be a valid number"),
        (json.dumps(GOOD | {"box": [3, 2, 1, 4]}), "box is empty"),
        (json.dumps(GOOD | {"box": [1, 2, float("nan"), 4]}), "box.2: Input should be a finite"),
    ],
)
def test_wrong_lines_are_named(line: str, problem: str):
    data = f"{json.dumps(GOOD)}\n\n{line}\n".encode()
    with pytest.raises(SourceError, match=rf"boxes.jsonl line 3: {problem}.*one a line: {{"):
        parse_boxes(data, "boxes.jsonl")


def test_what_else_a_line_says_is_ignored():
    (box,) = parse_boxes(json.dumps(GOOD | {"question": "?", "layout": "sign"}).encode(), "b")
    assert (box.box, box.source_id, box.layout) == ((1, 2, 3.5, 4), None, "sign")


def test_boxes_are_looked_at_before_anything_is_made_of_the_source(
    memory_store: ArtifactStore, tmp_path: Path
):
    """They were at evaluation: hours of training came first, and then a traceback."""
    (tmp_path / "boxes.jsonl").write_text('{"image": "gqa/1.png", "box": [1, 2, 3, 4]}\n')
    source = write_small_mix(tmp_path).model_copy(update={"boxes": f"{tmp_path}/boxes.jsonl"})
    with pytest.raises(SourceError, match=r"boxes\.jsonl line 1: turn"):
        download(stage_run(memory_store), source)
