"""Numbers of questions and bytes that a plan is made of, against what stages make of the same."""

import json
from pathlib import Path

import pytest

from data_contracts.configs import PipelineConfig, RecordsConfig
from data_contracts.enums import Stage
from data_contracts.sources import (
    FileSource,
    LlavaMixSource,
    ParquetSource,
    SceneSource,
    Selection,
    Source,
)
from flows.dry_run import plan_run
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.build_jsonl import build_jsonl
from tasks.download import download
from tasks.planning.counted_questions import Counted, counted_questions
from tasks.planning.files import PlannedFile, planned_files
from tasks.planning.questions import Certainty
from tasks.planning.sizes import RowBytes
from tasks.planning.stages import PlannedStage
from tasks.shard_statistics import num_usable
from tasks.sources.record_stream import SourceError
from tests.file_server import file_server, runtime_at
from tests.mixes import mix_record, write_image
from tests.source_files import write_parquet

ALL = RecordsConfig(turns="all")
QUESTIONS = [f"what is {number} ?" for number in range(5)]


def write_talks(folder: Path, num_images: int = 4) -> LlavaMixSource:
    """Five questions of each picture, of which one is asked twice."""
    names = [f"gqa/{number}.png" for number in range(num_images)]
    for number, name in enumerate(names):
        write_image(folder / "images" / name, number)
    records = [mix_record(name, name, *QUESTIONS, QUESTIONS[0]) for name in names]
    (folder / "mix.json").write_text(json.dumps(records))
    return LlavaMixSource(name="m", records=f"{folder}/mix.json", images=f"{folder}/images")


def counted(source: FileSource, folder: Path, settings: RecordsConfig = ALL) -> Counted | None:
    runtime = runtime_at(folder)
    files = planned_files((source,), runtime)[source.name]
    return counted_questions(source, settings, files, folder / "downloads")


def stages_of(
    source: Source, folder: Path, settings: RecordsConfig = ALL
) -> dict[Stage, PlannedStage]:
    config = PipelineConfig(name="x", sources=(source,), records=settings)
    return {stage.stage: stage for stage in plan_run(config, runtime_at(folder)).stages}


def made(source: Source, folder: Path) -> tuple[int, int]:
    """Usable questions of a source, and bytes of its download."""
    runtime = runtime_at(folder)
    run = StageRun(ArtifactStore(runtime.store), runtime)
    files = download(run, source)
    questions = build_jsonl(run, files, source, ALL)
    num_bytes = sum(stored.num_bytes for stored in run.store.storage.find(files.prefix))
    return num_usable(run.store.manifest(questions)), num_bytes


def test_all_turns_of_a_mix_were_planned_as_one_a_record(tmp_path: Path):
    source = write_talks(tmp_path)
    assert counted(source, tmp_path) == Counted(20, True, num_records=4, num_images=4)
    assert counted(source, tmp_path, RecordsConfig()) == Counted(4, True, 4, 4)
    stage = stages_of(source, tmp_path)[Stage.EXTRACT_ATTENTION]
    assert (stage.num_units, stage.certainty) == (20, Certainty.AT_MOST)
    planned = stages_of(source, tmp_path)[Stage.DOWNLOAD].num_shards
    assert made(source, tmp_path)[0] == 20
    assert planned == stages_of(source, tmp_path)[Stage.DOWNLOAD].num_shards == 2


def test_shards_of_images_and_records_were_planned_as_if_each_had_one_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Six times as many as a run makes of OCR-VQA, and as many times the bytes of their table."""
    for module in ("recipes", "planning.stages"):
        monkeypatch.setattr(f"tasks.{module}.IMAGES_PER_SHARD", 4)
    source = write_talks(tmp_path, num_images=12)
    part = Selection(part="held_out", held_out_ratio=0.25)
    settings = RecordsConfig(turns="all", rows_per_shard=5)
    for one in (source, source.model_copy(update={"selection": part})):
        planned = stages_of(one, tmp_path, settings)
        run = StageRun(ArtifactStore(f"{tmp_path}/made"), runtime_at(tmp_path))
        files = download(run, one)
        questions = build_jsonl(run, files, one, settings)
        for stage, ref in ((Stage.DOWNLOAD, files), (Stage.BUILD_JSONL, questions)):
            assert planned[stage].num_shards == len(run.store.manifest(ref).shards)
    assert planned[Stage.BUILD_JSONL].num_units == 15


def test_expected_records_with_all_their_turns_are_fewer_than_the_questions(tmp_path: Path):
    """They were planned as so many questions, "about"."""
    source = write_talks(tmp_path).model_copy(update={"expected_records": 4})
    for settings, certainty in ((ALL, Certainty.AT_LEAST), (RecordsConfig(), Certainty.ABOUT)):
        stage = stages_of(source, tmp_path, settings)[Stage.EXTRACT_ATTENTION]
        assert (stage.num_units, stage.certainty) == (4, certainty)


def test_a_subset_and_a_part_of_what_is_counted(tmp_path: Path):
    source = write_talks(tmp_path)
    subset = RecordsConfig(turns="all", max_records=7)
    stage = stages_of(source, tmp_path, subset)[Stage.EXTRACT_ATTENTION]
    assert (stage.num_units, stage.certainty) == (7, Certainty.AT_MOST)
    part = Selection(part="train", held_out_ratio=0.25)
    partly = source.model_copy(update={"selection": part})
    stage = stages_of(partly, tmp_path)[Stage.EXTRACT_ATTENTION]
    assert (stage.num_units, stage.certainty) == (15, Certainty.ABOUT)


def test_of_a_large_file_the_first_records_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write_talks(tmp_path)
    # JSON Lines are read in small parts, so that even a small file is read in part only.
    names = [f"gqa/{number:06d}.png" for number in range(2000)]
    records = [mix_record(name, name, *QUESTIONS) for name in names]
    (tmp_path / "mix.json").write_text("".join(f"{json.dumps(one)}\n" for one in records))
    monkeypatch.setattr("tasks.planning.counted_questions.READ_BYTES", 100_000)
    found = counted(source, tmp_path)
    assert found is not None
    assert not found.is_whole
    assert found.number == pytest.approx(5 * len(records), rel=0.05)


def test_first_records_say_nothing_of_folders_that_come_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A plan said "about 0 questions" and "GPU time: none" of a folder late in a large file."""
    source = write_talks(tmp_path)
    names = [f"coco/{number:06d}.png" for number in range(2000)]
    names += [f"textvqa/{number:06d}.png" for number in range(2000)]
    records = [mix_record(name, name, *QUESTIONS) for name in names]
    (tmp_path / "mix.json").write_text("".join(f"{json.dumps(one)}\n" for one in records))
    monkeypatch.setattr("tasks.planning.counted_questions.READ_BYTES", 100_000)
    late = source.model_copy(update={"selection": Selection(folders=("textvqa",))})
    assert counted(late, tmp_path) is None
    stage = stages_of(late, tmp_path)[Stage.EXTRACT_ATTENTION]
    assert stage.num_units > 0
    assert stage.gpu_hours > 0


def test_what_is_asked_twice_counts_twice_where_repeats_are_taken(tmp_path: Path):
    """A plan counted 20 questions exactly where a run made 24."""
    source = write_talks(tmp_path)
    repeats = source.model_copy(update={"selection": Selection(repeats=True)})
    assert counted(repeats, tmp_path) == Counted(24, True, num_records=4, num_images=4)
    assert made(repeats, tmp_path)[0] == 24


def test_rows_of_parquet_are_questions(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet")
    write_parquet(tmp_path / "b.parquet")
    one, both = (
        ParquetSource(name="hub", files=(f"{tmp_path}/{name}.parquet",)) for name in ("a", "*")
    )
    first, all_rows = counted(one, tmp_path), counted(both, tmp_path)
    assert first is not None
    num_rows = 2 * first.number
    assert all_rows == Counted(num_rows, True, num_rows, num_rows)


def test_a_plan_does_not_pass_over_records_that_a_run_cannot_read(tmp_path: Path):
    """A cut file was planned by its size, and refused when the run began."""
    source = write_talks(tmp_path)
    (tmp_path / "mix.json").write_text('[{"id": "1", ')
    config = PipelineConfig(name="x", sources=(source,))
    with pytest.raises(SourceError, match=r"mix.json: record 0 is not JSON .*; is the file compl"):
        plan_run(config, runtime_at(tmp_path))


def test_what_is_not_here_is_not_counted(tmp_path: Path):
    source = write_talks(tmp_path)
    coming = PlannedFile("m", "https://host/mix.json", 15_500, None, None, num_missing=15_500)
    away = source.model_copy(update={"records": "https://host/mix.json"})
    assert counted_questions(away, ALL, [coming], tmp_path) is None


def test_turns_of_records_that_are_still_to_come_are_a_lower_bound(tmp_path: Path):
    with file_server() as server:
        server.add("/mix.json", bytes(15_500))
        source = LlavaMixSource(name="m", records=server.url("/mix.json"), images=str(tmp_path))
        found = stages_of(source, tmp_path)[Stage.EXTRACT_ATTENTION]
        assert (found.num_units, found.certainty) == (10, Certainty.AT_LEAST)
        first = stages_of(source, tmp_path, RecordsConfig())[Stage.EXTRACT_ATTENTION]
        assert (first.num_units, first.certainty) == (10, Certainty.ABOUT)


def test_generated_scenes_were_not_counted(tmp_path: Path):
    """They are four fifths of what the reference run stores."""
    source = SceneSource(name="scenes", num_images=40)
    planned = stages_of(source, tmp_path)[Stage.DOWNLOAD].store_bytes
    _, num_bytes = made(source, tmp_path)
    assert num_bytes / 1.3 < planned < num_bytes * 1.3
    assert stages_of(source, tmp_path)[Stage.DOWNLOAD].store_bytes == 0


def test_two_parts_of_one_source_are_stored_once(tmp_path: Path):
    source = write_talks(tmp_path, 40)
    twin = source.model_copy(update={"name": "twin", "selection": Selection(part="held_out")})
    config = PipelineConfig(name="x", sources=(source, twin))
    plan = plan_run(config, runtime_at(tmp_path))
    sizes = {s.source: s.store_bytes for s in plan.stages if s.stage is Stage.DOWNLOAD}
    records = (tmp_path / "mix.json").stat().st_size
    assert sizes["m"] > records
    assert sizes["twin"] < records


def test_training_of_a_large_model_leaves_resume_points():
    """The latest two, with float32 weights and two moments of each."""
    config = PipelineConfig.model_validate(
        {
            "name": "x",
            "sources": [{"type": "scenes", "name": "s", "num_images": 1}],
            "model": {"profile": "llava-1.5-7b", "dtype": "bfloat16"},
        }
    )
    sizes = RowBytes(config)
    assert sizes.resume_points(0, 49) == 0
    assert sizes.resume_points(0, 99) == pytest.approx(6 * sizes.rpn(99), rel=0.01)
    assert sizes.resume_points(0, 500) == pytest.approx(12 * sizes.rpn(500), rel=0.01)
    assert sizes.resume_points(100, 500) == 0
