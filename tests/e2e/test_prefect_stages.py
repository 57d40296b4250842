"""Stages inside real Prefect flows: downloads announced and reported, hiccups that cost little."""

import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from prefect import flow
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TaskRun

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import PipelineConfig
from data_contracts.enums import Stage
from data_contracts.runtime import RuntimeConfig
from data_contracts.sources import LlavaMixSource, RemoteFile, SceneSource
from flows import pipeline_flow, prefect_execution
from flows.outcome import RunOutcome
from flows.pipeline_flow import sdrpn
from tasks.artifacts.stage import FrameShard, StageRun, run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.download import download
from tasks.fetching.remote import DownloadError
from tasks.storage.errors import StoreUnreachable
from tests.architecture.source_tree import CHECKOUT
from tests.artifacts import make_source_shard, source_recipe, stage_run
from tests.e2e.command_line import is_anyone_left
from tests.e2e.prefect_run import start_run
from tests.e2e.prefect_server import PrefectServer, prefect_server
from tests.file_server import QUICK, Answer, FileServer, file_server
from tests.patience import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as server, server.in_this_process():
        yield server


@pytest.fixture
def files() -> Iterator[FileServer]:
    with file_server() as running:
        yield running


def serve_mix(files: FileServer, folder: Path) -> LlavaMixSource:
    """A mix of one picture, some of it on the server; 3 MiB, so that fetching it takes parts."""
    images = folder / "images"
    images.mkdir()
    Image.new("RGB", (40, 30), "red").save(images / "1.png")
    turns = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    records = [{"id": "1", "image": "1.png", "conversations": turns, "pad": "x" * (3 << 20)}]
    served = files.add("/r.json", json.dumps(records).encode())
    digest = hashlib.sha256(served.data).hexdigest()
    address = RemoteFile(uri=files.url("/r.json"), sha256=digest, licence="CC BY 4.0")
    return LlavaMixSource(name="m", records=address, images=str(images))


def config_of(source: LlavaMixSource) -> PipelineConfig:
    return PipelineConfig(name="d", sources=(source,))


def ended_task_runs(*names: str) -> list[TaskRun]:
    """The server learns of task runs from events, which may arrive after their flow has ended."""

    def ended() -> dict[str, TaskRun]:
        with get_client(sync_client=True) as client:
            return {run.name: run for run in client.read_task_runs() if run.end_time is not None}

    wait_until(lambda: set(names) <= ended().keys())
    runs = ended()
    return [runs[name] for name in names]


def test_files_are_announced_before_they_are_fetched_and_never_again(
    prefect: PrefectServer, files: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = serve_mix(files, tmp_path)
    served = files.files["/r.json"]
    # As long as one attempt at planning takes, the server is not there.
    served.behave = lambda number, wanted: Answer(status=503 if number < 3 else None)
    runtime = RuntimeConfig(store=str(tmp_path / "store"), downloads=QUICK)
    sdrpn(config=config_of(source), runtime=runtime, stage=Stage.DOWNLOAD)

    announced = Artifact.get("sdrpn-downloads")
    (row,) = json.loads(announced.data)
    assert row == {
        "source": "m",
        "file": files.url("/r.json"),
        "size": "3.0 MiB",
        "SHA-256": hashlib.sha256(served.data).hexdigest(),
        "licence": "CC BY 4.0",
        "state": "to fetch",
    }
    plan, fetched = ended_task_runs("download plan", "download m")
    assert plan.run_count == 2, "the silent server was asked again"
    assert plan.end_time <= announced.created <= fetched.start_time
    assert any("CC BY 4.0" in line and row["SHA-256"] in line for line in caplog.messages)

    sdrpn(config=config_of(source), runtime=runtime, stage=Stage.DOWNLOAD)
    assert Artifact.get("sdrpn-downloads").id == announced.id


def test_what_does_not_fit_is_announced_and_not_begun(
    prefect: PrefectServer, files: FileServer, tmp_path: Path
) -> None:
    source = serve_mix(files, tmp_path)
    settings = QUICK.model_copy(update={"free_gib": 1 << 20})
    runtime = RuntimeConfig(store=str(tmp_path / "store"), downloads=settings)
    with pytest.raises(DownloadError, match="are to be fetched and"):
        sdrpn(config=config_of(source), runtime=runtime, stage=Stage.BUILD_JSONL)
    (row,) = json.loads(Artifact.get("sdrpn-downloads").data)
    assert row["file"] == files.url("/r.json")
    assert files.files["/r.json"].requests == ["bytes=0-0"]


def test_the_parts_of_a_download_are_logged_and_leave_the_stages_bar_alone(
    prefect: PrefectServer,
    files: FileServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """MiB were logged as if they were shards, and the bar was full when the last file was there."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(prefect_execution, "_SECONDS_BETWEEN_REPORTS", 0.0)
    shares: list[float] = []
    for name in ("create_progress_artifact", "update_progress_artifact"):
        monkeypatch.setattr(prefect_execution, name, _telling(name, shares))
    runtime = RuntimeConfig(store=str(tmp_path / "store"), downloads=QUICK)
    source = serve_mix(files, tmp_path)

    @flow(name="one-download")
    def one_download() -> str:
        execution = prefect_execution.PrefectExecution(runtime)
        return str(execution.whole(Stage.DOWNLOAD, download, source, label="m"))

    ref = ArtifactRef.parse(one_download())
    store = ArtifactStore(runtime.store)
    num_shards = store.manifest(ref).recipe.num_shards
    assert shares == [100 * done / num_shards for done in range(num_shards + 1)]
    assert f"download m: 3 of 3 MiB of {files.url('/r.json')}" in caplog.messages
    assert f"download m: {num_shards} of {num_shards}" in caplog.messages


def _telling(name: str, shares: list[float]) -> Callable[..., object]:
    """Prefect's own function, which also keeps the share that it is given."""
    function = getattr(prefect_execution, name)

    def tell(*arguments: object, **settings: object) -> object:
        shares.append(next(value for value in arguments if isinstance(value, float)))
        return function(*arguments, **settings)

    return tell


def test_a_forced_stage_goes_on_after_a_hiccup(prefect: PrefectServer, tmp_path: Path) -> None:
    """Each attempt discarded what the last one had made: a forced training began at step 0."""
    store = ArtifactStore(str(tmp_path / "store"))
    run_stage(stage_run(store), source_recipe(3), make_source_shard)
    made: list[int] = []

    def make(run: StageRun) -> ArtifactRef:
        def make_shard(index: int) -> FrameShard:
            made.append(index)
            if made.count(2) == 1 and index == 2:
                raise StoreUnreachable("the bucket does not answer")
            return make_source_shard(index)

        return run_stage(run, source_recipe(3), make_shard)

    @flow(name="forced")
    def forced() -> str:
        runtime = RuntimeConfig(store=store.root)
        execution = prefect_execution.PrefectExecution(runtime, {Stage.DOWNLOAD})
        return str(execution.whole(Stage.DOWNLOAD, make, label="m"))

    assert store.is_committed(ArtifactRef.parse(forced()))
    assert made == [0, 1, 2, 2]


def test_work_goes_on_when_the_server_cannot_be_told_of_its_progress(
    prefect: PrefectServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A display that could not be brought up to date ended an extraction."""

    def tell_nobody(*_: object, **__: object) -> None:
        httpx.get("http://127.0.0.1:9/api")

    @flow(name="reporting")
    def reporting() -> str:
        report = prefect_execution.ProgressReport(Stage.DOWNLOAD, "m")
        report("download", 1, 3)
        monkeypatch.setattr(prefect_execution, "update_progress_artifact", tell_nobody)
        report("download", 3, 3)
        return "done"

    assert reporting() == "done"
    assert "download m: progress is not shown (" in caplog.text


@pytest.mark.parametrize("how", [("flow",), ("flow", "speaking"), ()])
def test_a_worker_that_is_killed_is_explained(
    prefect: PrefectServer, tmp_path: Path, how: tuple[str, ...]
) -> None:
    """Under Prefect it was an error of a process pool, with no word of what to do."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.killed_worker", str(tmp_path / "store"), *how],
        cwd=CHECKOUT,
        env=prefect.environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    told = done.stderr.splitlines()[-1]
    assert re.search(r"^told: a worker of download was killed.* fewer workers", told), done.stderr


def test_ctrl_c_ends_a_run_with_worker_processes(prefect: PrefectServer, tmp_path: Path) -> None:
    """A terminal sends it to the workers too: they printed tracebacks, and the run hung."""
    process = start_run(prefect, tmp_path, "--workers", "2")
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130, told
    assert f"interrupted: what is finished is kept in {tmp_path / 'store'}" in told


def test_workers_end_with_a_flow_that_is_killed(prefect: PrefectServer, tmp_path: Path) -> None:
    """They stayed for good, and kept the device's memory from the rerun."""
    process = start_run(prefect, tmp_path, "--workers", "2")
    process.kill()
    process.communicate()
    while is_anyone_left(process.pid):
        time.sleep(0.005)  # without end: pytest has a limit


def test_where_the_tables_of_benchmarks_lie_is_told(
    prefect: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line said it; a run in Prefect's UI did not."""
    uris = (f"{tmp_path}/comparison.json", f"{tmp_path}/comparison.md")
    outcome = RunOutcome(stages=(), table_uris=uris)
    monkeypatch.setattr(pipeline_flow, "run_pipeline", lambda *_: outcome)
    config = PipelineConfig(name="d", sources=(SceneSource(name="s", num_images=1),))
    assert sdrpn(config=config, runtime=RuntimeConfig(store=str(tmp_path))) == outcome
    told = Artifact.get("sdrpn-tables")
    assert told is not None
    assert told.data == "```\n" + "\n".join(uris) + "\n```"
    assert told.description == "Tables: d"
