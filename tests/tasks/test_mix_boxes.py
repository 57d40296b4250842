import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.configs import EvaluationConfig, RecordsConfig
from data_contracts.settings_files import ConfigError, parse_lines
from data_contracts.sources import LlavaMixSource, SceneSource, Selection
from tasks import recipes
from tasks.artifacts.keys import manifest_key
from tasks.artifacts.store import ArtifactStore
from tasks.build_jsonl import build_jsonl
from tasks.download import download
from tasks.sources.evaluation_documents import SourceDocuments, mix_boxes, warn_of_unasked_boxes
from tasks.sources.mix_boxes import MixBox
from tests.artifacts import shard_reads, stage_run
from tests.mixes import mix_record, write_image, write_small_mix

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


A, B, UNITED = [1, 1, 9, 9], [20, 12, 30, 24], [1, 1, 30, 24]
SCENES = SceneSource(name="s", num_images=1)


def line(image: str, box: list[int], **other: Any) -> dict[str, Any]:
    return {"image": image, "turn": 0, "box": box} | other


def made(
    store: ArtifactStore, folder: Path, lines: list[dict[str, Any]], **settings: Any
) -> tuple[ArtifactRef, ArtifactRef]:
    """Questions and files of a source; b.png and c.png are copies of a.png."""
    write_image(folder / "images/a.png")
    write_image(folder / "images/gqa/d.png", 1)
    for copy in ("b.png", "c.png"):
        shutil.copy(folder / "images/a.png", folder / "images" / copy)
    names = ("a.png", "./b.png", "c.png", "gqa/d.png")
    records = [mix_record(str(number), name) for number, name in enumerate(names)]
    (folder / "mix.json").write_text(json.dumps(records))
    (folder / "boxes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = LlavaMixSource(
        name="m",
        records=f"{folder}/mix.json",
        images=f"{folder}/images",
        boxes=f"{folder}/boxes.jsonl",
        **settings,
    )
    run = stage_run(store)
    files = download(run, source)
    return build_jsonl(run, files, source, RecordsConfig()), files


def test_boxes_outside_their_images_are_told_when_these_are_fetched(
    memory_store: ArtifactStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """They stopped the run at evaluation, after hours of training."""
    beyond = [900, 1, 950, 9]
    lines = [line("a.png", A), line("a.png", beyond), line("gqa/d.png", beyond)]
    made(memory_store, tmp_path, lines)
    told = [record.getMessage() for record in caplog.records if "true box" in record.message]
    assert told == [
        "true boxes outside their images, which evaluation leaves out: 1; the first: "
        "[900.0, 1.0, 950.0, 9.0] of gqa/d.png, which has 48 x 32 pixels"
    ]


@pytest.mark.parametrize(
    ("lines", "expected", "as_written"),
    [
        ([line("a.png", A), line("a.png", B)], {"0": UNITED, "1": UNITED}, False),
        # b.png has its own; which of the two c.png has, nothing tells.
        ([line("a.png", A), line("b.png", B)], {"0": A, "1": B, "2": None}, False),
        ([line("./b.png", B), line("a.png", A)], {"0": A, "1": B, "2": None}, False),
        ([line("./a.png", A)], {"0": A, "1": A, "2": A}, False),
        # As ever: what a copy without boxes takes, by id or for all records.
        ([line("a.png", A)], {"0": A, "1": A, "2": A}, True),
        ([line("a.png", A), line("b.png", A)], {"0": A, "1": A, "2": A}, True),
        ([line("a.png", A), line("a.png", UNITED)], {"0": UNITED, "2": UNITED}, True),
        ([line("a.png", A), line("a.png", B, source_id="2")], {"0": A, "1": A, "2": B}, True),
        ([line("gqa/d.png", A)], {"3": A, "0": None}, True),
    ],
)
def test_a_question_has_the_boxes_of_its_path(
    memory_store: ArtifactStore, tmp_path: Path, lines: list, expected: dict, as_written: bool
):
    """The last line stood for all, of identical images too, and ./a.png was no image."""
    questions, files = made(
        memory_store, tmp_path, lines, selection=Selection(repeats=True), copy_images=True
    )
    documents = SourceDocuments(memory_store, files, "vqa")
    rows = memory_store.read_frame(questions).to_dicts()
    found = {row["source_id"]: documents.document(row).true_box for row in rows}
    for source_id, box in expected.items():
        assert found[source_id] == (None if box is None else tuple(box))
    assert mix_boxes(memory_store, files).are_as_written is as_written


def test_a_process_reads_boxes_once_for_all_shards_of_an_evaluation(
    file_store: ArtifactStore, tmp_path: Path, reads: Counter[str]
):
    """For each of them the boxes were read again, and the table of all the source's files."""
    questions, files = made(file_store, tmp_path, [line("a.png", A), line("gqa/d.png", B)])
    reads.clear()
    for _ in range(3):
        SourceDocuments(file_store, files, "vqa")
    warn_of_unasked_boxes(file_store, questions, files)
    assert shard_reads(file_store, files, reads) == [3, 1], "of the first: records, boxes, rows"
    manifest = manifest_key(files)
    file_store.storage.put(manifest, file_store.storage.read(manifest) + b"\n")
    reads.clear()
    SourceDocuments(file_store, files, "vqa")
    assert shard_reads(file_store, files, reads) == [3, 1], "what is made anew is read anew"


def test_only_answers_whose_boxes_changed_are_given_again(
    memory_store: ArtifactStore, tmp_path: Path
):
    """What was made with the right boxes stays, at the address it had."""
    questions, files = made(memory_store, tmp_path, [line("a.png", A)])
    manifest, settings = memory_store.manifest(questions), EvaluationConfig(source=SCENES)

    def recipe(is_as_written: bool) -> Recipe:
        return recipes.predictions_recipe(
            manifest,
            files,
            files,
            settings,
            {},
            boxes_as_written=is_as_written,
            all_answered=True,
        )

    assert recipe(True).ref != recipe(False).ref
    assert set(recipe(False).config) - set(recipe(True).config) == {"true_boxes"}


def test_only_answers_whose_scores_changed_are_given_again(
    memory_store: ArtifactStore, tmp_path: Path
):
    """Exact match of one's own questions tells -5 from 5 now; no scene's answer has a sign."""
    questions, files = made(memory_store, tmp_path, [line("a.png", A)])
    mix = LlavaMixSource(name="mix", records="x", images="y")

    def config(**settings: Any) -> dict[str, Any]:
        return recipes.predictions_recipe(
            memory_store.manifest(questions),
            files,
            files,
            EvaluationConfig(**settings),
            {},
            boxes_as_written=True,
            all_answered=True,
        ).config

    scenes, own, other = config(source=SCENES), config(source=mix), {"benchmark": "docvqa"}
    assert set(own) - set(scenes) == {"exact_match"}
    assert set(config(source=mix, **other)) == set(scenes)


@pytest.mark.parametrize(
    ("wrong", "settings"),
    [
        (line("images/a.png", A), {}),
        (line("../a.png", A), {}),
        (line("a.png", A, source_id="00"), {}),
        (line("a.png", A, turn=1), {}),
        (line("gqa/d.png", A), {"selection": Selection(folders=("gqa",))}),
    ],
)
def test_boxes_of_no_question_are_told(
    memory_store: ArtifactStore, tmp_path: Path, caplog, wrong: dict, settings: dict
):
    """They vanished silently. Those of folders that are not selected are no news."""
    questions, files = made(memory_store, tmp_path, [line("a.png", A), wrong], **settings)
    warn_of_unasked_boxes(memory_store, questions, files)
    told = [record.getMessage() for record in caplog.records if "true boxes" in record.getMessage()]
    if settings:
        assert not told
    else:
        (message,) = told
        assert message.startswith("1 of 2 true boxes belong to no question that is asked; the fir")
        assert repr(wrong["image"]) in message
