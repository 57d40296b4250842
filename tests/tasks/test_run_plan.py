"""What is known before a download: all of it if servers answer, plainly less if they do not."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_contracts.configs import EvaluationConfig, PipelineConfig
from data_contracts.enums import BenchmarkTask, Method, Stage
from data_contracts.runtime import RuntimeConfig
from data_contracts.sources import (
    BenchmarkSource,
    ImageFolder,
    LlavaMixSource,
    ParquetSource,
    RemoteFile,
    SceneSource,
    Source,
)
from flows.dry_run import plan_run
from tasks.fetching.addresses import downloads_folder, free_bytes
from tasks.fetching.fetcher import describe, fetch
from tasks.fetching.http_remote import HttpRemote
from tasks.fetching.remote import DownloadError, Hiccup, NoAnswer
from tasks.fetching.transient import is_transient
from tasks.planning.files import PlannedFile, planned_files, require_room, waiting_files
from tasks.planning.model_files import PlannedModel
from tasks.planning.questions import Certainty
from tasks.planning.run_plan import RunPlan
from tasks.sources.benchmark_files import TABLE_LABEL
from tasks.sources.record_stream import SourceError
from tests.benchmark_tables import write_table
from tests.file_server import QUICK, Answer, FileServer, file_server, runtime_at
from tests.source_files import runtime_of_silence

NAMES = ("/a.json", "/b.json", "/c.json")
SIZE = 3_100_000
"""Bytes of a made-up mix of 2,000 records."""
GIB = 1 << 30
BOTH = ("download", "build-jsonl")
SWEPT = [(name, threshold) for name in ("held_out", "pope") for threshold in (0.1, 0.2)]


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as running:
        for name in NAMES:
            running.add(name, bytes(SIZE))
        yield running


def mix(server: FileServer, name: str) -> LlavaMixSource:
    return LlavaMixSource(name=name[1:2], records=server.url(name), images=server.url("/images"))


def mixes(server: FileServer) -> tuple[Source, ...]:
    return tuple(mix(server, name) for name in NAMES)


def refuse(server: FileServer, name: str, status: int = 503) -> None:
    server.files[name].behave = lambda number, wanted: Answer(status=status)


def test_a_silent_server_leaves_gaps_in_the_plan_and_the_rest_is_counted(
    server: FileServer, tmp_path: Path
):
    refuse(server, "/b.json")
    config = PipelineConfig(name="x", sources=mixes(server))
    plan = plan_run(config, runtime_at(tmp_path))
    (silent,) = plan.unknown_files
    assert silent.uri == server.url("/b.json")
    assert silent.problem == "the server answers 503 Service Unavailable"
    assert (silent.num_bytes, silent.is_here) == (None, False)
    assert plan.fetch_bytes == 2 * SIZE
    units = {(stage.stage.value, stage.source): stage.num_units for stage in plan.stages}
    assert units["extract-attention", "a"] == 2000
    assert units["extract-attention", "b"] is None
    assert units["train-rpn", ""] is None, "the whole is not known where a part is not"
    assert not plan.is_estimated
    assert plan.gpu_hours > 0
    assert len(server.files["/b.json"].requests) == 2, "a plan is not worth more attempts"


def test_what_the_configuration_says_of_a_silent_file_counts(server: FileServer, tmp_path: Path):
    refuse(server, "/a.json")
    records = RemoteFile(uri=server.url("/a.json"), num_bytes=SIZE, sha256="ab" * 32)
    source = mix(server, "/a.json").model_copy(update={"records": records})
    plan = plan_run(PipelineConfig(name="x", sources=(source,)), runtime_at(tmp_path))
    (file,) = plan.unknown_files
    assert (file.num_bytes, file.num_missing, file.sha256) == (SIZE, SIZE, "ab" * 32)
    assert plan.is_estimated


def test_a_listing_that_cannot_be_had_stands_in_the_plan_by_its_pattern(tmp_path: Path):
    pattern = "s3://lake/data/train-*.parquet"
    source = ParquetSource(name="p", files=(pattern,))
    runtime = runtime_of_silence(tmp_path)
    (file,) = plan_run(PipelineConfig(name="x", sources=(source,)), runtime).unknown_files
    assert file.uri == pattern
    assert file.problem
    with pytest.raises(DownloadError, match="cannot be listed") as caught:
        waiting_files((source,), runtime)
    assert is_transient(caught.value)


def test_servers_are_asked_side_by_side(server: FileServer, tmp_path: Path):
    together = threading.Barrier(len(NAMES))

    for name in NAMES:
        server.files[name].behave = lambda number, wanted: Answer(wait=lambda: together.wait(30))
    patient = QUICK.model_copy(update={"read_timeout": 60})
    runtime = runtime_at(tmp_path).model_copy(update={"downloads": patient})
    assert len(waiting_files(mixes(server), runtime)) == len(NAMES)
    assert not together.broken


def test_a_run_stops_at_silence_and_at_refusal_but_only_silence_is_worth_another_try(
    server: FileServer, tmp_path: Path
):
    refuse(server, "/b.json")
    with pytest.raises(NoAnswer, match=r"b.json: .*503.*\(3 attempts\)") as caught:
        waiting_files(mixes(server), runtime_at(tmp_path))
    assert is_transient(caught.value)
    refuse(server, "/b.json", 404)
    for ask in (waiting_files, planned_files):
        with pytest.raises(DownloadError, match=r"b.json: does not exist") as refused:
            ask(mixes(server), runtime_at(tmp_path))
        assert not is_transient(refused.value)
    with pytest.raises(DownloadError, match=r"b.json: does not exist"):
        plan_run(PipelineConfig(name="x", sources=mixes(server)), runtime_at(tmp_path))


def test_a_download_that_breaks_off_is_worth_another_try_and_wrong_bytes_are_not(
    server: FileServer, tmp_path: Path
):
    def fetched(name: str, **facts: str) -> None:
        file = RemoteFile(uri=server.url(name), **facts)
        fetch(file, tmp_path / "here", lambda uri: HttpRemote(uri, QUICK), QUICK)

    server.files["/a.json"].behave = lambda number, wanted: Answer(drop_after=0 if number else None)
    with pytest.raises(NoAnswer, match="try again later") as caught:
        fetched("/a.json")
    assert is_transient(caught.value)
    assert isinstance(caught.value.__cause__, Hiccup)
    with pytest.raises(DownloadError, match="sends other bytes") as wrong:
        fetched("/b.json", sha256="cd" * 32)
    assert not is_transient(wrong.value)


def test_a_mirror_that_may_come_back_is_worth_another_try(server: FileServer):
    refuse(server, "/a.json")
    file = RemoteFile(uri=server.url("/gone.json"), mirrors=(server.url("/a.json"),))
    with pytest.raises(NoAnswer, match=r"gone.json: does not exist.*a.json: .*503"):
        describe(file, lambda uri: HttpRemote(uri, QUICK), QUICK)


def test_files_that_fit_one_by_one_must_fit_together(tmp_path: Path):
    runtime = runtime_at(tmp_path)
    more_than_half = int(free_bytes(downloads_folder(runtime)) * 0.6)

    def file(name: str, num_rewritten: int = 0) -> PlannedFile:
        known = (more_than_half, None, None, more_than_half)
        return PlannedFile("s", name, *known, num_rewritten=num_rewritten)

    require_room([file("a")], runtime)
    with pytest.raises(DownloadError, match=r"are to be fetched and .* GiB kept free, but only"):
        require_room([file("a"), file("b")], runtime)
    with pytest.raises(DownloadError, match="make room"):
        require_room([file("a.tar.gz", more_than_half)], runtime)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"records": "{here}/no.json"}, r"no.json: no such file; check the source's URI"),
        ({"records": "file://{here}/no.json"}, r"no.json: no such file; check the source's URI"),
        (
            {"records": "file://{here}/m%69x.json"},
            r"m%69x.json: no such file; .* URI, which is taken as it is: not quoted, .*/mix.json",
        ),
        (
            {"images": "{here}/%2E"},
            r"no such folder; .*, which is taken as it is: not quoted, .*/\.",
        ),
        ({"records": "{here}"}, r"is a folder; name a file in it"),
        ({"boxes": "{here}/boxes.jsonl"}, r"boxes.jsonl: no such file"),
        ({"images": "{here}/images"}, r"images: no such folder; check `--images`"),
        ({"images": [{"type": "archive", "file": "{here}/i.zip"}]}, r"i.zip: no such file"),
        ({"images": [{"type": "archive", "file": "{here}"}]}, r"is a folder, not an archive"),
    ],
)
def test_what_is_not_on_this_disk_stops_the_plan_as_it_stops_the_run(
    settings: dict[str, Any], message: str, tmp_path: Path
):
    (tmp_path / "mix.json").write_text("[]")
    given = {"name": "m", "records": "{here}/mix.json", "images": "{here}"} | settings
    source = LlavaMixSource.model_validate_json(
        json.dumps(given).replace("{here}", str(tmp_path)),
    )
    runtime = runtime_at(tmp_path)
    with pytest.raises(SourceError, match=message):
        plan_run(PipelineConfig(name="x", sources=(source,)), runtime)
    with pytest.raises(SourceError, match=message):
        waiting_files((source,), runtime)


def test_one_folder_of_several_is_enough_for_a_plan(tmp_path: Path):
    (tmp_path / "mix.json").write_text("[]")
    places = tuple(ImageFolder(uri=str(uri)) for uri in (tmp_path / "gone", tmp_path))
    source = LlavaMixSource(name="m", records=str(tmp_path / "mix.json"), images=places)
    (file,) = plan_run(PipelineConfig(name="x", sources=(source,)), runtime_at(tmp_path)).files
    assert (file.num_bytes, file.is_here) == (2, True)


def scenes(folder: Path, **evaluation: Any) -> PipelineConfig:
    """A run that fetches nothing, with public benchmarks in a folder."""
    write_table(folder / "pope", BenchmarkTask.POPE, 6)
    benchmark = BenchmarkSource(task=BenchmarkTask.POPE, files=str(folder / "pope"))
    held_out = SceneSource(name="held_out", num_images=10, seed=1)
    return PipelineConfig(
        name="x",
        sources=(SceneSource(name="scenes", num_images=20), SceneSource(name="more", num_images=4)),
        evaluation=EvaluationConfig(source=held_out, benchmarks=(benchmark,), **evaluation),
    )


def test_every_stage_is_planned_in_the_order_of_the_run(tmp_path: Path):
    plan = plan_run(scenes(tmp_path), runtime_at(tmp_path))
    assert [(stage.stage.value, stage.source) for stage in plan.stages] == [
        *((kind, name) for name in ("scenes", "more", "held_out", "pope") for kind in BOTH),
        ("extract-attention", "scenes"),
        ("make-labels", "scenes"),
        ("extract-attention", "more"),
        ("make-labels", "more"),
        ("merge-labels", ""),
        ("train-rpn", ""),
        ("evaluate", "held_out"),
        ("evaluate", "pope"),
        ("evaluate", TABLE_LABEL),
        ("report", ""),
    ]


def test_documents_of_a_benchmark_on_this_machine_are_counted(tmp_path: Path):
    """A folder of few was planned as the whole published split."""
    stages = plan_run(scenes(tmp_path), runtime_at(tmp_path)).stages
    known = {(s.stage, s.num_units, s.certainty) for s in stages if s.source == "pope"}
    kinds = (Stage.DOWNLOAD, Stage.BUILD_JSONL, Stage.EVALUATE)
    assert known == {(kind, 6, Certainty.AT_MOST) for kind in kinds}


def test_every_threshold_of_a_sweep_is_one_more_evaluation_by_one_method(tmp_path: Path):
    methods = (Method.BASE, Method.RAW_ATTENTION, Method.SDRPN)
    plain = plan_run(scenes(tmp_path, methods=methods), runtime_at(tmp_path))
    swept_by = (0.2, 0.1, 0.2)
    swept = plan_run(
        scenes(tmp_path, methods=methods, threshold_sweep=swept_by), runtime_at(tmp_path)
    )
    hours = {stage.source: stage.gpu_hours for stage in swept.stages if stage.stage == "evaluate"}
    names = ["held_out", "pope", *(f"{name} at {x:g}" for name, x in SWEPT), TABLE_LABEL]
    assert list(hours) == names
    for name, threshold in SWEPT:
        assert hours[f"{name} at {threshold:g}"] == pytest.approx((hours[name] or 0) / 3)
    evaluated = sum(stage.gpu_hours or 0 for stage in plain.stages if stage.stage == "evaluate")
    assert swept.gpu_hours - plain.gpu_hours == pytest.approx(evaluated * 2 / 3)


def test_what_a_download_leaves_free_is_needed_too(server: FileServer, tmp_path: Path):
    free = free_bytes(tmp_path)
    config = PipelineConfig(name="x", sources=mixes(server))

    def planned(free_gib: float) -> RunPlan:
        settings = QUICK.model_copy(update={"free_gib": free_gib})
        runtime = RuntimeConfig(store=str(tmp_path / "store"), downloads=settings)
        plan = plan_run(config, runtime)
        if not plan.fits:
            with pytest.raises(DownloadError, match="kept free, but only"):
                require_room(plan.files, runtime)
        return plan

    assert planned(free / GIB / 2).fits
    refused = planned(free / GIB)
    assert not refused.fits
    assert refused.reserve_bytes == free


def test_weights_count_on_the_disk_that_they_come_to(tmp_path: Path):
    plan = plan_run(scenes(tmp_path), runtime_at(tmp_path))
    assert plan.model is None
    weights = PlannedFile("model", "hf://a/b@c/model.safetensors", GIB, None, None, GIB)
    model = PlannedModel("a/b", tmp_path, 0, shares_disk=True, files=(weights,))
    assert replace(plan, model=model).needed_bytes == plan.needed_bytes + GIB
    elsewhere = replace(model, shares_disk=False)
    assert replace(plan, model=elsewhere).needed_bytes == plan.needed_bytes
