import json
from pathlib import Path

import pytest

from data_contracts.settings_files import ConfigError, parse_lines
from tasks.artifacts.store import ArtifactStore
from tasks.download import download
from tasks.sources.mix_boxes import MixBox
from tests.artifacts import stage_run
from tests.mixes import write_small_mix

GOOD = {"image": "gqa/1.png", "turn": 0, "box": [1, 2, 3.5, 4]}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        (json.dumps({"image": "a.png", "box": [1, 2, 3, 4]}), "key 'turn' is missing"),
        (json.dumps(GOOD | {"box": [1, 2, 3]}), r"key 'box.3' is missing"),
        (
            json.dumps(GOOD | {"box": [1, 2, "x", 4]}),
            r"key 'box.2': Input should be a valid number",
        ),
        (json.dumps(GOOD | {"box": [3, 2, 1, 4]}), "box is empty"),
        (
            json.dumps(GOOD | {"box": [1, 2, float("nan"), 4]}),
            "key 'box.2': Input should be a finite",
        ),
    ],
)
def test_wrong_lines_are_named(line: str, problem: str):
    data = f"{json.dumps(GOOD)}\n\n{line}\n".encode()
    with pytest.raises(ConfigError, match=rf"^boxes.jsonl line 3: .*{problem}"):
        parse_lines(MixBox, data, "boxes.jsonl")


def test_what_else_a_line_says_is_ignored():
    data = json.dumps(GOOD | {"question": "?", "layout": "sign"}).encode()
    (box,) = parse_lines(MixBox, data, "b")
    assert (box.box, box.source_id, box.layout) == ((1, 2, 3.5, 4), None, "sign")


def test_boxes_are_looked_at_before_anything_is_made_of_the_source(
    memory_store: ArtifactStore, tmp_path: Path
):
    """They were at evaluation: hours of training came first, and then a traceback."""
    boxes = tmp_path / "boxes.jsonl"
    boxes.write_text('{"image": "gqa/1.png", "box": [1, 2, 3, 4]}\n')
    source = write_small_mix(tmp_path).model_copy(update={"boxes": str(boxes)})
    with pytest.raises(ConfigError, match=rf"{boxes} line 1: key 'turn' is missing"):
        download(stage_run(memory_store), source)
