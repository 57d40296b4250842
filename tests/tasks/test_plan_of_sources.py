"""What a plan says of sources that an earlier run fetched, rewrote and read, or that it cannot
look over."""

import io
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from PIL import Image

from data_contracts.configs import EvaluationConfig, ModelConfig, PipelineConfig, RecordsConfig
from data_contracts.enums import BenchmarkTask, Stage
from data_contracts.sources import (
    BenchmarkSource,
    ImageArchive,
    LlavaMixSource,
    ParquetSource,
    SceneSource,
    Source,
    VisualCotSource,
)
from flows.dry_run import plan_run
from tasks.artifacts.stage import NotMade, StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.build_jsonl import build_jsonl
from tasks.download import download
from tasks.fetching.addresses import downloads_folder
from tasks.planning.files import planned_files, waiting_files
from tasks.planning.run_plan import RunPlan
from tasks.planning.stages import PlannedStage
from tests.benchmark_tables import write_table
from tests.file_server import Answer, FileServer, file_server, runtime_at
from tests.mixes import write_image
from tests.source_files import mix_at, published_mix, runtime_of_silence, write_parquet

LENIENT = RecordsConfig(max_failure_rate=0.9)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    with file_server() as running:
        for name, data in published_mix(gzip=True).items():
            running.add(f"/{name}", data)
        yield running


def planned(source: Source, folder: Path) -> RunPlan:
    config = PipelineConfig(name="x", sources=(source,), records=LENIENT)
    return plan_run(config, runtime_at(folder))


def stages_of(plan: RunPlan) -> dict[Stage, PlannedStage]:
    return {stage.stage: stage for stage in plan.stages}


def done(plan: RunPlan) -> set[Stage]:
    return {stage.stage for stage in plan.stages if stage.is_done}


def make(source: Source, folder: Path, *, questions: bool = True) -> None:
    """Download, and read the questions."""
    runtime = runtime_at(folder)
    run = StageRun(ArtifactStore(runtime.store), runtime)
    files = download(run, source)
    if questions:
        build_jsonl(run, files, source, LENIENT)


def rewritten(folder: Path, name: str) -> list[Path]:
    """Folders of a conversion."""
    return sorted(downloads_folder(runtime_at(folder)).glob(f"*-{name}"))


def visual_cot(folder: Path) -> VisualCotSource:
    write_image(folder / "images" / "gqa" / "1.png")
    line = '{"question": "q ?", "answer": "a", "image": "1.png", "dataset": "gqa", "bboxs": []}'
    (folder / "viscot.jsonl").write_text(f"{line}\n")
    return VisualCotSource(
        name="cot", records=str(folder / "viscot.jsonl"), images=str(folder / "images")
    )


def gzipped(folder: Path) -> LlavaMixSource:
    """A mix in files of this disk, one archive of which is a gzipped tar by content alone."""
    for name, data in published_mix(gzip=True).items():
        (folder / name).write_bytes(data)
    return mix_at(str(folder))


def hub_table(folder: Path) -> ParquetSource:
    write_parquet(folder / "a.parquet")
    write_parquet(folder / "b.parquet")
    return ParquetSource(name="hub", files=(f"{folder}/*.parquet",), id_column="question_id")


@pytest.mark.parametrize(
    ("write", "names", "conversion"),
    [
        (gzipped, ("ocr_vqa.tar",), "gunzip"),
        (hub_table, ("a.parquet", "b.parquet"), "parquet"),
        (visual_cot, ("viscot.jsonl",), "visual-cot"),
    ],
)
def test_what_an_earlier_run_rewrote_is_not_counted_again(
    write: Callable[[Path], Source], names: tuple[str, ...], conversion: str, tmp_path: Path
):
    source = write(tmp_path)
    size = sum((tmp_path / name).stat().st_size for name in names)
    assert planned(source, tmp_path).convert_bytes == size
    make(source, tmp_path)
    assert planned(source, tmp_path).convert_bytes == 0
    assert done(planned(source, tmp_path)) == {Stage.DOWNLOAD, Stage.BUILD_JSONL}
    (folder,) = rewritten(tmp_path, conversion)
    shutil.rmtree(folder)
    again = planned(source, tmp_path)
    assert again.convert_bytes == size
    assert done(again) == set()
    assert again.unknown_stages[0].made.problem == "files are still to be rewritten"
    assert rewritten(tmp_path, conversion) == [], "a plan rewrites nothing"


def test_a_file_that_has_changed_is_rewritten_again(tmp_path: Path):
    source = hub_table(tmp_path)
    make(source, tmp_path)
    write_parquet(tmp_path / "b.parquet", question=[f"other {n} ?" for n in range(5)])
    size = sum((tmp_path / name).stat().st_size for name in ("a.parquet", "b.parquet"))
    assert planned(source, tmp_path).convert_bytes == size


def test_sources_that_have_files_rewritten_alike_need_them_once(tmp_path: Path):
    source = gzipped(tmp_path)
    size = (tmp_path / "ocr_vqa.tar").stat().st_size
    other = source.model_copy(update={"name": "other"})
    config = PipelineConfig(name="x", sources=(source, other))
    assert plan_run(config, runtime_at(tmp_path)).convert_bytes == size
    tables = (hub_table(tmp_path), hub_table(tmp_path).model_copy(update={"name": "other"}))
    size = sum(path.stat().st_size for path in tmp_path.glob("*.parquet"))
    twice = plan_run(PipelineConfig(name="x", sources=tables), runtime_at(tmp_path))
    assert twice.convert_bytes == 2 * size, "their rows are named after the source"


def test_fetched_files_are_looked_over_without_their_server(server: FileServer, tmp_path: Path):
    source = mix_at(server.root)
    first = planned(source, tmp_path)
    assert first.convert_bytes == 0, "by its name it is a plain tar"
    assert first.fetch_bytes == sum(len(d) for d in published_mix(gzip=True).values())
    make(source, tmp_path)
    assert done(planned(source, tmp_path)) == {Stage.DOWNLOAD, Stage.BUILD_JSONL}
    for file in server.files.values():
        file.behave = lambda number, wanted: Answer(status=503)
    silent = planned(source, tmp_path)
    assert done(silent) == {Stage.DOWNLOAD, Stage.BUILD_JSONL}, "a run would go on with its copies"
    assert (silent.fetch_bytes, silent.convert_bytes) == (0, 0)
    shutil.rmtree(downloads_folder(runtime_at(tmp_path)))
    gone = planned(source, tmp_path)
    assert done(gone) == set()
    assert [s.stage for s in gone.unknown_stages] == [Stage.DOWNLOAD]
    assert gone.unknown_stages[0].made.problem == "a server does not answer"


def test_files_to_be_fetched_again_leave_open_what_is_made_of_them(
    server: FileServer, tmp_path: Path
):
    source = mix_at(server.root)
    make(source, tmp_path)
    server.add("/images.zip", server.files["/images.zip"].data + b"longer")
    fetched = {path.name for path in downloads_folder(runtime_at(tmp_path)).iterdir()}
    plan = planned(source, tmp_path)
    assert plan.fetch_bytes > 0
    assert done(plan) == set()
    assert plan.unknown_stages[0].made.problem == "files are still to be fetched"
    assert {path.name for path in downloads_folder(runtime_at(tmp_path)).iterdir()} == fetched


def test_who_only_looks_fetches_nothing(server: FileServer, tmp_path: Path):
    runtime = runtime_at(tmp_path)
    run = StageRun(ArtifactStore(runtime.store), runtime, only_looks=True)
    with pytest.raises(NotMade, match=r"mix\.json: is still to be fetched"):
        download(run, mix_at(server.root))
    assert not Path(runtime.store).exists()
    assert not any(file.requests for file in server.files.values())


def test_a_source_without_questions_yet_has_as_many_as_its_records_ask(tmp_path: Path):
    source = gzipped(tmp_path)
    make(source, tmp_path, questions=False)
    plan = stages_of(planned(source, tmp_path))
    assert plan[Stage.DOWNLOAD].is_done
    assert not plan[Stage.BUILD_JSONL].is_done
    # Of nine records one has no image and one is of another folder; that one image of the others
    # is missing turns out when they are read.
    assert plan[Stage.EXTRACT_ATTENTION].num_units == 7
    make(source, tmp_path)
    plan = stages_of(planned(source, tmp_path))
    assert plan[Stage.EXTRACT_ATTENTION].num_units == 6


def test_archives_that_are_in_the_store_are_not_copied_again(tmp_path: Path):
    source = gzipped(tmp_path).model_copy(update={"copy_images": True})
    sizes = [(tmp_path / name).stat().st_size for name in ("images.zip", "ocr_vqa.tar")]
    assert planned(source, tmp_path).copied_bytes == sum(sizes)
    make(source, tmp_path)
    assert planned(source, tmp_path).copied_bytes == 0


def refuse(path: Path) -> str:
    raise AssertionError(f"{path} is read")


def test_too_much_to_read_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = gzipped(tmp_path).model_copy(update={"copy_images": True})
    make(source, tmp_path)
    for module in ("tasks.planning.rewriting", "tasks.planning.unread_sources"):
        monkeypatch.setattr(f"{module}.READ_LIMIT", 1)
    monkeypatch.setattr("tasks.planning.rewriting.digest_file", refuse)
    plan = planned(source, tmp_path)
    assert plan.convert_bytes == (tmp_path / "ocr_vqa.tar").stat().st_size
    assert done(plan) == set()
    monkeypatch.setattr("tasks.planning.rewriting.READ_LIMIT", 1 << 30)
    with pytest.raises(AssertionError, match=r"ocr_vqa.tar is read"):
        planned(source, tmp_path)
    monkeypatch.undo()
    assert done(planned(source, tmp_path)) == {Stage.DOWNLOAD, Stage.BUILD_JSONL}


def test_images_that_are_asked_for_one_by_one_are_not_looked_over(
    server: FileServer, tmp_path: Path
):
    write_image(tmp_path / "1.png")
    server.add("/images/1.png", (tmp_path / "1.png").read_bytes())
    talk = '[{"id": "1", "image": "1.png", "conversations": [{"from": "human", "value": "q ?"}]}]'
    (tmp_path / "mix.json").write_text(talk)
    source = LlavaMixSource(
        name="m", records=f"{tmp_path}/mix.json", images=f"{server.root}/images"
    )
    make(source, tmp_path)
    asked = len(server.files["/images/1.png"].requests)
    (unread,) = planned(source, tmp_path).unknown_stages
    assert unread.made.problem == f"{server.root}/images would have to be asked for each image"
    assert len(server.files["/images/1.png"].requests) == asked


def test_a_committed_benchmark_is_done_without_its_files(tmp_path: Path):
    write_table(tmp_path / "pope", BenchmarkTask.POPE, 6)
    benchmark = BenchmarkSource(task=BenchmarkTask.POPE, files=str(tmp_path / "pope"))
    scenes = SceneSource(name="scenes", num_images=2)
    held_out = SceneSource(name="held_out", num_images=2, seed=1)
    evaluation = EvaluationConfig(source=held_out, benchmarks=(benchmark,))
    config = PipelineConfig(name="x", sources=(scenes,), evaluation=evaluation)
    runtime = runtime_at(tmp_path)
    run = StageRun(ArtifactStore(runtime.store), runtime)
    download(run, benchmark)

    def downloads(plan: RunPlan) -> dict[str, bool]:
        return {s.source: s.is_done for s in plan.stages if s.stage is Stage.DOWNLOAD}

    assert downloads(plan_run(config, runtime)) == {
        "scenes": False,
        "held_out": False,
        "pope": True,
    }
    assert not any(s.made.problem for s in plan_run(config, runtime).stages)


def test_what_is_made_with_a_model_of_unknown_commit_is_not_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Nobody listens on the discard port.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    source = gzipped(tmp_path)
    model = ModelConfig(profile="llava-1.5-7b")
    config = PipelineConfig(name="x", sources=(source,), model=model)
    assert not plan_run(config, runtime_at(tmp_path)).has_unknown_model, "nothing is made yet"
    make(source, tmp_path)
    plan = plan_run(config, runtime_at(tmp_path))
    assert done(plan) == {Stage.DOWNLOAD, Stage.BUILD_JSONL}
    assert plan.has_unknown_model
    pinned = model.model_copy(update={"revision": "a" * 40})
    known = plan_run(config.model_copy(update={"model": pinned}), runtime_at(tmp_path))
    assert not known.has_unknown_model
    assert stages_of(known)[Stage.EXTRACT_ATTENTION].num_shards == 1


def test_a_silent_store_does_not_stop_the_plan(tmp_path: Path):
    config = PipelineConfig(name="x", sources=(SceneSource(name="scenes", num_images=2),))
    plan = plan_run(config, runtime_of_silence(tmp_path))
    (silent,) = plan.unknown_stages
    assert (silent.stage, silent.num_units) == (Stage.DOWNLOAD, 2)
    assert (silent.made.problem or "").startswith("s3://lake/store: ")
    assert not plan.is_done


def test_an_archive_is_gzipped_by_content_where_it_can_be_read(server: FileServer, tmp_path: Path):
    source = gzipped(tmp_path)
    (file,) = (f for f in planned_files((source,), runtime_at(tmp_path))["mix"] if f.num_rewritten)
    assert file.uri == f"{tmp_path}/ocr_vqa.tar"
    plain = tmp_path / "plain.tar.gz"
    with tarfile.open(plain, "w") as archive:
        image = io.BytesIO()
        Image.new("RGB", (8, 8)).save(image, "PNG")
        info = tarfile.TarInfo("1.png")
        info.size = len(image.getvalue())
        archive.addfile(info, io.BytesIO(image.getvalue()))
    named_so = source.model_copy(update={"images": (ImageArchive(file=str(plain)),)})
    assert planned(named_so, tmp_path).convert_bytes == 0
    server.add("/plain.tar.gz", plain.read_bytes())
    coming = ImageArchive(file=server.url("/plain.tar.gz"))
    waiting = waiting_files(
        (source.model_copy(update={"images": (coming,)}),), runtime_at(tmp_path)
    )
    assert [file.num_rewritten for file in waiting] == [plain.stat().st_size]
