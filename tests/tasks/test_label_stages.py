"""From questions to the label set: what cannot be read, what is new, what occurs twice."""

import json
import re
import tracemalloc
import weakref
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_contracts.artifact import ArtifactRef, Manifest
from data_contracts.configs import PipelineConfig
from data_contracts.enums import ExtractionStatus, LabelStatus, RoiLabel, Stage
from data_contracts.label_settings import LabelChanges, LabelSettings
from data_contracts.registry import SchemaId, frame_of
from data_contracts.settings_files import ConfigError
from data_contracts.sources import LlavaMixSource
from flows.execution import LocalExecution
from flows.wiring import Pipeline
from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.pseudo_labels import make_pseudo_labels
from tasks.artifacts.admin import committed_artifacts, list_artifacts
from tasks.artifacts.frame_codec import decode_frame
from tasks.artifacts.keys import manifest_key
from tasks.artifacts.stage import FrameShard, run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.attention_reuse import earlier_rows
from tasks.extract_attention import TooManyFailures, usable_questions
from tasks.make_labels import make_labels
from tests.artifacts import shard_reads, source_recipe, stage_run
from tests.mixes import mix_record, write_image
from tests.pipelines import LENIENT, write_tiny_pipeline


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PipelineConfig]:
    folder = tmp_path_factory.mktemp("tiny")
    return folder, write_tiny_pipeline(folder, num_images=6)


def pipeline(config: PipelineConfig, store: ArtifactStore, *sources: LlavaMixSource, **changes):
    runtime = stage_run(store).runtime.model_copy(update={"store": store.root})
    given = {"sources": sources or config.sources, "evaluation": None, **changes}
    return Pipeline(config.model_copy(update=given), LocalExecution(runtime))


def test_label_settings_that_do_not_go_together_stop_a_run_before_anything_is_made(
    tiny, file_store: ArtifactStore
):
    _, config = tiny
    labels = LabelChanges(foreground_ratio_threshold=0.01)
    made = pipeline(config, file_store, labels=labels)
    for make in (made.label_set, partial(made.make, Stage.EXTRACT_ATTENTION)):
        with pytest.raises(ConfigError, match="must not exceed foreground_ratio_threshold"):
            make()
    assert list_artifacts(file_store) == []


def write_mix(folder: Path, *names: str, name: str = "mine") -> LlavaMixSource:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(names):
        if not (folder / image).exists():
            write_image(folder / image, number, (40, 30 + number))
    records = [mix_record(image, image) for image in names]
    (folder / "mix.json").write_text(json.dumps(records))
    return LlavaMixSource(name=name, records=f"{folder}/mix.json", images=str(folder))


def rows(store: ArtifactStore, ref: ArtifactRef) -> pl.DataFrame:
    return store.read_frame(ref).sort("question_id")


def test_many_answers_without_an_end_are_warned_about(
    tiny, file_store: ArtifactStore, caplog: pytest.LogCaptureFixture
):
    """Lists of boxes that never end took their labels with them, and only the report told."""
    _, config = tiny
    for number, is_told in ((32, False), (1, True)):
        caplog.clear()
        extraction = config.extraction.with_changes(max_new_tokens=number)
        made = pipeline(config, file_store, extraction=extraction)
        made.labels(config.sources[0])
        assert ("do not end within the tokens allowed" in caplog.text) is is_told


def test_labels_are_those_of_the_attention(tiny, file_store: ArtifactStore):
    _, config = tiny
    made = pipeline(config, file_store)
    source = config.sources[0]
    attention = rows(file_store, made.attention(source))
    labels = rows(file_store, made.labels(source))
    assert labels["question_id"].to_list() == attention["question_id"].to_list()
    checked = 0
    for before, after in zip(attention.to_dicts(), labels.to_dicts(), strict=True):
        if before["status"] != ExtractionStatus.OK.value:
            assert after["status"] == LabelStatus.NOT_EXTRACTED.value
            assert before["status"] in after["reason"]
            continue
        grid = (1, before["grid_height"], before["grid_width"])
        expected = make_pseudo_labels(
            np.array(before["grounding"]).reshape(grid),
            np.array(before["sink"]).reshape(grid),
            LENIENT,
            np.array([[before["image_width"], before["image_height"]]]),
        )
        assert after["labels"] == expected.labels.ravel().tolist()
        checked += 1
    assert checked >= 3
    statistics = file_store.manifest(made.label_set()).statistics
    assert sum(v for k, v in statistics.items() if k.startswith("status.")) == labels.height


def test_questions_are_found_across_record_shards(
    tiny, file_store: ArtifactStore, reads: Counter[str]
):
    """A shard of questions was read again for every share of them."""
    _, config = tiny
    made = pipeline(config, file_store)
    ref = made.questions(config.sources[0])
    assert len(file_store.manifest(ref).shards) > 1
    shares = [usable_questions(file_store, ref, 9, index) for index in range(9)]
    assert max(shard_reads(file_store, ref, reads)) == 1
    found = [row["question_id"] for share in shares for row in share]
    usable = file_store.read_frame(ref).filter(pl.col("status") == "ok")
    assert found == usable["question_id"].to_list()


def test_unreadable_image_keeps_its_row(tiny, file_store: ArtifactStore, tmp_path: Path):
    _, config = tiny
    source = write_mix(tmp_path, "a.png", "bad.png", "c.png")
    made = pipeline(config, file_store, source)  # three images: one is more than any small share
    none = config.extraction.model_copy(update={"tolerated_failures": 0})
    strict = pipeline(config, ArtifactStore(f"{tmp_path}/other"), source, extraction=none)
    made.questions(source)
    strict.questions(source)
    # One that is damaged from the start is found before: this one goes bad afterwards.
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (row,) = (
        rows(file_store, made.labels(source))
        .filter(pl.col("image_uri").str.ends_with("bad.png"))
        .to_dicts()
    )
    assert row["status"] == LabelStatus.NOT_EXTRACTED.value
    assert re.match(r"unreadable_image: .*bad.png: changed since", row["reason"])
    assert row["labels"] == []
    with pytest.raises(TooManyFailures, match=r"1 of 3 images cannot be read .*bad.png"):
        strict.attention(source)


def test_image_edited_after_download_is_not_used(tiny, file_store: ArtifactStore, tmp_path: Path):
    """A label would otherwise describe other pixels than those that are trained on."""
    _, config = tiny
    source = write_mix(tmp_path, "a.png")
    none = config.extraction.model_copy(update={"tolerated_failures": 0})
    made = pipeline(config, file_store, source, extraction=none)
    made.questions(source)
    write_image(tmp_path / "a.png", seed=77)
    with pytest.raises(TooManyFailures, match=r"changed since it was downloaded"):
        made.attention(source)


def test_only_new_and_changed_questions_are_extracted(
    tiny, file_store: ArtifactStore, tmp_path: Path
):
    _, config = tiny
    source = write_mix(tmp_path, "a.png", "b.png", "c.png")
    first = pipeline(config, file_store, source).attention(source)
    source = write_mix(tmp_path, "a.png", "b.png", "c.png", "d.png", "e.png")
    write_image(tmp_path / "b.png", seed=88)
    second = pipeline(config, file_store, source).attention(source)
    assert file_store.manifest(first).statistics["reused_rows"] == 0
    assert file_store.manifest(second).statistics["reused_rows"] == 2
    before, after = rows(file_store, first), rows(file_store, second)
    assert after.height == 5
    kept = set(before["question_id"]) & set(after["question_id"])
    assert len(kept) == 2
    is_kept = pl.col("question_id").is_in(list(kept))
    assert after.filter(is_kept).equals(before.filter(is_kept))

    elsewhere = ArtifactStore(f"{tmp_path}/elsewhere")
    fresh = rows(elsewhere, pipeline(config, elsewhere, source).attention(source))
    for mixed, whole in zip(after["grounding"], fresh["grounding"], strict=True):
        assert (mixed is None) == (whole is None)
        if mixed is not None:
            np.testing.assert_allclose(mixed, whole, atol=1e-6)


@pytest.mark.parametrize("damaged", ["manifest.json", "shards"])
def test_damaged_earlier_attention_is_not_reused_and_stops_nothing(
    tiny, file_store: ArtifactStore, tmp_path: Path, damaged: str, caplog
):
    """Nothing of the damaged artifact was asked for: its rows are merely made again."""
    _, config = tiny
    source = write_mix(tmp_path, "a.png", "b.png")
    first = pipeline(config, file_store, source).attention(source)
    (key,) = [o.key for o in file_store.storage.find(first.prefix) if f"/{damaged}" in o.key]
    file_store.storage.put(key, b"PAR1 damaged")
    source = write_mix(tmp_path, "a.png", "b.png", "c.png")
    second = pipeline(config, file_store, source).attention(source)
    assert file_store.manifest(second).num_rows == 3
    assert file_store.manifest(second).statistics["reused_rows"] == 0
    (line,) = [message for message in caplog.messages if str(first) in message]
    assert "\n" not in line


def test_earlier_attention_that_is_deleted_meanwhile_is_made_again(
    tiny, file_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
):
    """Somebody's forced run, or a clearing up of the store, stopped everybody else's extraction,
    and later was warned about once for every shard."""
    _, config = tiny
    source = write_mix(tmp_path, *(f"{number}.png" for number in range(4)))
    first = pipeline(config, file_store, source).attention(source)
    assert len(file_store.manifest(first).shards) == 2

    def found_and_deleted(*asked: object) -> list[Manifest]:
        found = committed_artifacts(*asked)
        file_store.discard(first)
        return found

    monkeypatch.setattr("tasks.attention_reuse.committed_artifacts", found_and_deleted)
    source = write_mix(tmp_path, "0.png", "1.png", "b.png")
    second = pipeline(config, file_store, source).attention(source)
    assert file_store.manifest(second).num_rows == 3
    assert file_store.manifest(second).statistics["reused_rows"] == 0
    told = f"{first} was deleted meanwhile: its rows are made again"
    assert [message for message in caplog.messages if str(first) in message] == [told]


def test_looking_for_earlier_attention_decodes_no_map(
    tiny, file_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Shards without a wanted row were decoded whole, maps and all, to learn their ids."""
    _, config = tiny
    source = write_mix(tmp_path, "a.png", "b.png")
    pipeline(config, file_store, source).attention(source)
    read: list[object] = []
    whole = ArtifactStore.read_shard_frame

    def watch(store, made, index, columns=None):
        if made.recipe.stage is Stage.EXTRACT_ATTENTION:
            read.append(columns)
        return whole(store, made, index, columns)

    monkeypatch.setattr(ArtifactStore, "read_shard_frame", watch)
    other = write_mix(tmp_path / "other", "c.png")
    ref = pipeline(config, file_store, other).attention(other)
    assert read == [("question_id", "kind", "status")]
    assert file_store.manifest(ref).num_rows == 1


def test_what_earlier_attention_there_is_takes_no_memory(memory_store: ArtifactStore):
    """A quarter of a gigabyte for a million questions, in each worker."""
    row = {
        **dict.fromkeys(("dataset", "image_uri", "question", "response", "kernel", "reason"), "it"),
        **dict.fromkeys(("image_sha256", "grounding", "sink", "prompt_attention")),
        **asdict(Letterbox.limited((8, 8), 1.0)),
        "kind": "natural",
        "answers": [],
        "num_response_tokens": 0,
        "grid_height": 2,
        "grid_width": 2,
        "status": "empty_response",
    }
    ids = [f"{number:020x}" for number in range(20_000)]
    one = frame_of([{**row, "question_id": ids[0]}], SchemaId.ATTENTION_MAP)
    frame = pl.concat([one] * len(ids)).with_columns(question_id=pl.Series(ids))
    earlier, later = (
        source_recipe(1).model_copy(
            update={
                "stage": Stage.EXTRACT_ATTENTION,
                "schema_id": SchemaId.ATTENTION_MAP,
                "inputs": (f"build-jsonl/{name * 20}",),
            }
        )
        for name in "01"
    )
    run_stage(stage_run(memory_store), earlier, lambda index: FrameShard(frame))
    wanted = frame.row(7, named=True)
    tracemalloc.start()
    found = earlier_rows(memory_store, later, [wanted])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == {ids[7]: wanted}
    assert peak < 50 * len(ids)


def test_another_answer_length_reuses_nothing(tiny, file_store: ArtifactStore, tmp_path: Path):
    _, config = tiny
    source = write_mix(tmp_path, "a.png", "b.png")
    pipeline(config, file_store, source).attention(source)
    longer = config.extraction.model_copy(update={"max_new_tokens": 9})
    other = pipeline(config, file_store, source, extraction=longer).attention(source)
    assert file_store.manifest(other).statistics["reused_rows"] == 0


def test_merging_holds_one_shard_at_a_time(
    tiny, file_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All labels of a data set were concatenated in memory, and again to sort and encode them."""
    _, config = tiny
    source = write_mix(tmp_path, *(f"{number}.png" for number in range(7)))
    made = pipeline(config, file_store, source)
    labels = rows(file_store, made.labels(source))
    assert len(file_store.manifest(made.labels(source)).shards) == 3
    alive: list[weakref.ref] = []
    most_alive = 0

    def watch(data, schema_id, columns=None):
        nonlocal most_alive
        frame = decode_frame(data, schema_id, columns)
        if columns is None and schema_id == SchemaId.PSEUDO_LABEL:
            alive.append(weakref.ref(frame))
            most_alive = max(most_alive, sum(one() is not None for one in alive))
        return frame

    monkeypatch.setattr("tasks.artifacts.store.decode_frame", watch)
    merged = rows(file_store, made.label_set())
    assert len(alive) == 3
    assert most_alive == 1
    assert merged.drop("label_artifact").equals(labels)


def test_manifests_are_not_read_again_for_every_shard(
    tiny, file_store: ArtifactStore, tmp_path: Path, reads: Counter[str]
):
    """They are as long as there are shards, so that what was read grew with the square."""
    _, config = tiny

    def times_read(num_images: int, num_shards: int) -> list[int]:
        names = [f"{number}.png" for number in range(num_images)]
        source = write_mix(tmp_path / str(num_images), *names)
        made = pipeline(config, file_store, source)
        made.label_set()
        inputs = [made.attention(source), made.labels(source)]
        counts = [reads[manifest_key(ref)] for ref in inputs]
        assert [len(file_store.manifest(ref).shards) for ref in inputs] == [num_shards] * 2
        return counts

    assert times_read(2, 1) == times_read(7, 3)


def test_question_of_two_sources_is_trained_on_once(
    tiny, file_store: ArtifactStore, tmp_path: Path, reads: Counter[str]
):
    """The reference concatenates label files and never removes what occurs twice. And a shard of
    labels was read once more for each data set in it."""
    _, config = tiny
    one = write_mix(tmp_path / "one", "gqa/a.png", "gqa/b.png", name="one")
    two = write_mix(tmp_path / "two", "gqa/a.png", "gqa/b.png", "vg/c.png", name="two")
    made = pipeline(config, file_store, one, two)
    merged = file_store.manifest(made.label_set())
    assert [shard.num_rows for shard in merged.shards] == [2, 1]
    assert merged.statistics["duplicates"] == 2
    labels = file_store.read_frame(made.label_set())
    assert labels["dataset"].to_list() == ["gqa", "gqa", "vg"]
    assert set(labels["label_artifact"]) == {str(made.labels(one)), str(made.labels(two))}
    assert [shard_reads(file_store, made.labels(source), reads) for source in (one, two)] == [
        [1],
        [1],
    ]


def test_labels_of_a_canvas_that_is_no_square(memory_store: ArtifactStore):
    """InternVL pads images longer than 12:1 to that: what they showed was taken for padding."""
    grid = GridShape(16, 16)
    grounding = np.zeros(grid, np.float32)
    grounding[4, 6:9] = 1.0
    letterbox = Letterbox.limited((1210, 100), 12.0)
    row = {
        **{name: "it" for name in ("dataset", "image_uri", "question", "response", "kernel")},
        **asdict(letterbox),
        "question_id": "0" * 20,
        "kind": "natural",
        "answers": [],
        "num_response_tokens": 1,
        "grid_height": 16,
        "grid_width": 16,
        "grounding": grounding.ravel().tolist(),
        "sink": None,
        "prompt_attention": None,
        "kernel": "",
        "status": "ok",
        "reason": "",
    }
    recipe = source_recipe(1).model_copy(
        update={
            "stage": Stage.EXTRACT_ATTENTION,
            "schema_id": SchemaId.ATTENTION_MAP,
            "config": {"model": {"family": "internvl"}},
        }
    )
    frame = frame_of([row], SchemaId.ATTENTION_MAP)
    attention = run_stage(stage_run(memory_store), recipe, lambda index: FrameShard(frame))
    ref = make_labels(stage_run(memory_store), attention, LabelSettings.preset("default"))
    labels = memory_store.read_frame(ref)
    assert labels["status"].to_list() == [LabelStatus.OK]
    found = np.array(labels["labels"][0]).reshape(grid)
    np.testing.assert_array_equal(found == RoiLabel.FOREGROUND, grounding > 0)
    assert "padding" in memory_store.manifest(ref).recipe.config
