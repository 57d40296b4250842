"""Ctrl-C and SIGTERM: one line that says what is kept, at once, and no process is left behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.enums import Stage
from data_contracts.runtime import RuntimeConfig
from flows.cli import app
from flows.execution import LocalExecution
from flows.interrupts import interrupts_heard
from tasks.artifacts.stage import FrameShard, StageRun, run_stage
from tests.architecture.source_tree import CHECKOUT
from tests.artifacts import make_source_shard, source_recipe
from tests.e2e.command_line import is_anyone_left, sdrpn
from tests.pipelines import write_tiny_pipeline


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with so many shards that the first is done long before the last."""
    folder = tmp_path_factory.mktemp("pipeline")
    settings = write_tiny_pipeline(folder, num_images=60)
    extraction = settings.extraction.model_copy(update={"rows_per_shard": 1})
    settings = settings.model_copy(update={"extraction": extraction})
    (folder / "many.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    return folder / "many.yaml"


@pytest.fixture(scope="module")
def built(config: Path) -> Path:
    """A store with what comes before: each stage starts workers of its own, which takes seconds."""
    store = config.parent / "store"
    begun = sdrpn("stage", Stage.BUILD_JSONL, "-c", config, "--store", store)
    assert begun.exit_code == 0, begun.output
    return store


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "workers", "to_all"),
    [
        (signal.SIGINT, 1, True),
        (signal.SIGINT, 2, True),  # as a terminal sends it
        (signal.SIGINT, 2, False),  # as `kill -INT` sends it
        (signal.SIGTERM, 1, False),  # as a scheduler does, of which nothing was said
        (signal.SIGTERM, 2, True),
    ],
)
def test_during_extraction(
    config: Path, built: Path, tmp_path: Path, number: signal.Signals, workers: int, to_all: bool
):
    store = shutil.copytree(built, tmp_path / "store")
    command = [sys.executable, "-m", "flows", "run", "-c", config, "--store", store]
    process = subprocess.Popen(
        [str(part) for part in (*command, "--workers", workers)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    extraction = store / "extract-attention"
    while not list(extraction.glob("*/receipts/*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    if to_all:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, told = process.communicate()
    assert process.returncode == 128 + number, told
    assert not list(extraction.glob("*/manifest.json"))
    usual = re.compile(
        r": (done|reused|\d+ of \d+ \w+ after .* min( left)?|running for .* min)$"
        r"|^tasks.build_jsonl: source "
    )
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert [line for line in told.splitlines() if not usual.search(line)] == [
        f"{word}: what is finished is kept in {store}; the same command goes on from there"
    ]
    while is_anyone_left(process.pid):
        time.sleep(0.005)  # without end: pytest has a limit


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("to_all", [True, False])
def test_workers_end_in_the_middle_of_a_shard(tmp_path: Path, to_all: bool):
    """They ended with the shard, minutes later; these shards have no end."""
    process = start_endless_shards(tmp_path)
    while len(list(tmp_path.glob("begun/*"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    if to_all:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    check_quiet_end(process)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_run_that_is_killed(tmp_path: Path, number: signal.Signals):
    """They stayed for good, and kept the device's memory from the rerun."""
    process = start_endless_shards(tmp_path)
    while len(list(tmp_path.glob("begun/*"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate()
    while is_anyone_left(process.pid):
        time.sleep(0.005)  # without end: pytest has a limit


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_while_workers_are_started(tmp_path: Path):
    """Every shard was made before the Ctrl-C was heard."""
    check_quiet_end(start_endless_shards(tmp_path, "at-start"))


def start_endless_shards(store: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.endless_shards", str(store), *arguments],
        cwd=CHECKOUT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def check_quiet_end(process: subprocess.Popen[str]) -> None:
    _, told = process.communicate()
    assert (process.returncode, told) == (130, "")
    while is_anyone_left(process.pid):
        time.sleep(0.005)  # without end: pytest has a limit


def interrupt(*arguments: object, **keywords: object) -> None:
    signal.raise_signal(signal.SIGINT)


def interrupt_polars(*arguments: object, **keywords: object) -> None:
    """It asks a data type for its Rust counterpart, and says that there is none."""
    try:
        interrupt()
    except KeyboardInterrupt:
        raise TypeError("'<unprintable str object>' is not a Polars data type") from None


@pytest.mark.parametrize("interrupted", [interrupt, interrupt_polars])
def test_during_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: Callable[..., None]
):
    monkeypatch.setattr("tasks.calibrate.calibrate_model", interrupted)
    result = CliRunner().invoke(app, ["calibrate", "--model", "m", "--out", str(tmp_path / "out")])
    assert result.exit_code == 130
    assert result.stderr.splitlines() == [
        "interrupted: nothing is kept, as the files are written at the end"
    ]


@pytest.mark.parametrize("is_sharded", [True, False])
def test_a_shard_that_a_lost_ctrl_c_may_have_cut_short_is_not_kept(
    tmp_path: Path, is_sharded: bool
):
    def make_shard(index: int) -> FrameShard:
        if index == 1:
            with suppress(KeyboardInterrupt):
                interrupt()
        return make_source_shard(index)

    def make_one(run: StageRun, recipe: Recipe, index: int) -> FrameShard:
        return make_shard(index)

    def make_whole(run: StageRun) -> ArtifactRef:
        return run_stage(run, source_recipe(3), make_shard)

    execution = LocalExecution(RuntimeConfig(store=str(tmp_path)))
    run = (
        partial(execution.sharded, Stage.DOWNLOAD, lambda run: source_recipe(3), make_one)
        if is_sharded
        else partial(execution.whole, Stage.DOWNLOAD, make_whole)
    )
    with pytest.raises(KeyboardInterrupt), interrupts_heard():
        run()
    assert len(list(tmp_path.glob("*/*/receipts/*"))) == 1


@pytest.mark.parametrize("interrupted", [interrupt, interrupt_polars])
def test_anywhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: Callable[..., None]
):
    monkeypatch.setattr("tasks.sources.scene_files.write_scenes", interrupted)
    demo = tmp_path / "demo"
    result = CliRunner().invoke(app, ["scenes", str(demo)])
    assert result.exit_code == 130
    assert result.stderr.splitlines() == [
        f"interrupted: {demo} is not whole; delete it before you write it again"
    ]
