"""All public benchmarks through the command line: the reference model on tables as on the hub."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import EvaluationConfig, ExtractionConfig, PipelineConfig, RecordsConfig
from data_contracts.enums import BenchmarkTask, Method, ScoringMode, Stage
from data_contracts.sources import BenchmarkSource, SceneSource
from data_contracts.training import TrainingChanges
from flows.cli import app
from sdrpn_core.benchmarks import aggregate, score
from sdrpn_core.benchmarks.tasks import TASKS
from tasks.artifacts.admin import list_artifacts
from tasks.artifacts.store import ArtifactStore
from tests.architecture.source_tree import CHECKOUT
from tests.benchmark_scenes import scene_rows, write_scene_boxes, write_scene_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NUM_DOCUMENTS = 50
METHODS = (Method.BASE, Method.SDRPN, Method.ORACLE)
BATCH_SIZE = 16
SHARDS_BEFORE_KILL = 12
WITH_BOXES = BenchmarkTask.TEXTVQA


CONFIG = PipelineConfig(
    name="benchmarks",
    sources=(SceneSource(name="scenes", num_images=48),),
    records=RecordsConfig(turns="all"),
    extraction=ExtractionConfig(max_new_tokens=8),
    training=TrainingChanges(num_epochs=5, batch_size=8, learning_rate=3e-3),
    evaluation=EvaluationConfig(
        source=SceneSource(name="held_out", split="test", num_images=2),
        methods=METHODS,
        max_new_tokens=8,
        num_bootstrap=100,
        rows_per_shard=20,
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of everything, killed in the middle and resumed.

    What it ended with is in ``store``, its summary in ``summary.json``, what it printed in
    ``output.txt``. ``trained`` is the store as it was before, ``kept.json`` what the kill left.
    """
    folder = tmp_path_factory.mktemp("benchmarks")
    benchmarks = tuple(
        BenchmarkSource(
            task=task,
            files=str(write_scene_table(folder / task.value, task, NUM_DOCUMENTS)),
            boxes=str(write_scene_boxes(folder / "boxes.jsonl", task, NUM_DOCUMENTS))
            if task is WITH_BOXES
            else None,
        )
        for task in BenchmarkTask
    )
    write_config(folder, benchmarks)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        run(Stage.TRAIN_RPN, folder, folder / "trained")
        shutil.copytree(folder / "trained", folder / "store")
        kill_in_the_middle(folder)
        kept = {str(p): p.stat().st_mtime_ns for p in receipts(folder / "store")}
        (folder / "kept.json").write_text(json.dumps(kept))
        found = run(Stage.EVALUATE, folder, folder / "store", "--json", folder / "summary.json")
    (folder / "output.txt").write_text(found)
    return folder


def write_config(folder: Path, benchmarks: tuple[BenchmarkSource, ...], **changes: Any) -> None:
    assert CONFIG.evaluation is not None
    evaluation = CONFIG.evaluation.model_copy(update={"benchmarks": benchmarks, **changes})
    config = CONFIG.model_copy(update={"evaluation": evaluation})
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))


def run(stage: Stage, folder: Path, store: Path, *arguments: object) -> str:
    """Run up to a stage; returns what was printed."""
    options = ("--config", folder / "config.yaml", "--store", store, *arguments)
    batch = () if "--batch-size" in arguments else ("--batch-size", BATCH_SIZE)
    result = CliRunner().invoke(app, ["stage", stage.value, *map(str, (*options, *batch))])
    assert result.exit_code == 0, result.output
    return result.stdout


def receipts(store: Path) -> list[Path]:
    return list((store / "evaluate").glob("*/receipts/*.json"))


def kill_in_the_middle(folder: Path) -> None:
    """SIGKILL an evaluation in a process of its own when some of its shards are made."""
    command = [sys.executable, "-m", "flows", "stage", "evaluate", "--config"]
    command += [str(folder / "config.yaml"), "--store", str(folder / "store")]
    command += ["--batch-size", str(BATCH_SIZE)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while len(receipts(folder / "store")) < SHARDS_BEFORE_KILL:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def benchmarks(folder: Path) -> tuple[BenchmarkSource, ...]:
    config = PipelineConfig.load(folder / "config.yaml")
    assert config.evaluation is not None
    return config.evaluation.benchmarks


def predictions(store: Path) -> dict[str, list[str]]:
    """Digests of every evaluation's shards and results, by artifact."""
    artifacts = ArtifactStore(str(store))
    return {
        str(item.ref): [shard.sha256 for shard in artifacts.manifest(item.ref).shards]
        for item in list_artifacts(artifacts, Stage.EVALUATE)
        if artifacts.manifest(item.ref).recipe.schema_id != "files"
    }


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.mark.parametrize("task", BenchmarkTask)
def test_every_document_is_answered_and_scored(folder: Path, task: BenchmarkTask):
    found = summary(folder)
    reference = found["artifacts"]["evaluate"][task.value]
    store = ArtifactStore(str(folder / "store"))
    [ref] = [i.ref for i in list_artifacts(store, Stage.EVALUATE) if str(i.ref) == reference]
    frame = store.read_frame(ref)
    methods = METHODS if task is WITH_BOXES else METHODS[:2]
    assert frame.height == NUM_DOCUMENTS * len(methods)
    table = found["benchmarks"][task.value]
    assert table["num_documents"] == NUM_DOCUMENTS
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in scene_rows(task, NUM_DOCUMENTS):
        by_prompt.setdefault(TASKS[task].prompt(row), []).append(row)
    for row in frame.iter_rows(named=True):
        possible = {
            score(TASKS[task].rule, row["prediction"].strip(), r)
            for r in by_prompt[row["question"]]
        }
        assert row["score"] in possible
    for method in methods:
        for mode in ScoringMode:
            figures = table["figures"][method.value][mode.value]
            names = aggregate(
                TASKS[task].rule, [("x", r) for r in scene_rows(task, NUM_DOCUMENTS)], mode
            )
            assert figures.keys() == names.keys()
            assert all(0 <= value <= 1 for value in figures.values())
            for name in figures:
                assert name in (folder / "output.txt").read_text()


@pytest.mark.parametrize("task", [BenchmarkTask.TEXTVQA, BenchmarkTask.DOCVQA])
def test_the_zoom_reads_what_the_whole_image_is_too_small_for(folder: Path, task: BenchmarkTask):
    """The print of the scenes is unreadable at the model's input, and its crops are readable."""
    found = summary(folder)["benchmarks"][task.value]
    gain = found["gain"]["sdrpn"]
    assert gain > 0.05
    [figure] = found["figures"]["base"]["published"]
    accuracy = {
        method: found["figures"][method]["published"][figure] for method in ("base", "sdrpn")
    }
    assert accuracy["sdrpn"] - accuracy["base"] == pytest.approx(gain)


def test_killed_evaluation_goes_on_and_ends_with_the_bytes_of_an_undisturbed_one(
    folder: Path, benchmarks: tuple[BenchmarkSource, ...], tmp_path: Path
):
    kept = json.loads((folder / "kept.json").read_text())
    assert {name: Path(name).stat().st_mtime_ns for name in kept} == kept, "shards made again"
    assert 0 < len(kept) < len(receipts(folder / "store"))
    shutil.copytree(folder / "trained", tmp_path / "store")
    write_config(tmp_path, benchmarks[1:2])  # the one that was running
    run(Stage.EVALUATE, tmp_path, tmp_path / "store", "--json", tmp_path / "summary.json")
    undisturbed, resumed = predictions(tmp_path / "store"), predictions(folder / "store")
    assert len(resumed) == 1 + len(BenchmarkTask)
    assert undisturbed == {name: resumed[name] for name in undisturbed}
    num_kept = Counter(Path(name).parent.parent.name for name in kept)
    cut = [(num_kept[name.split("/")[1]], len(digests)) for name, digests in undisturbed.items()]
    assert any(0 < some < all_of_it for some, all_of_it in cut), "no benchmark was cut in two"
    again = json.loads((tmp_path / "summary.json").read_text())["benchmarks"]
    for name, table in again.items():
        own = summary(folder)["benchmarks"][name]
        measured = {"throughput", "seconds_per_document"}
        assert table.keys() == own.keys()
        assert {k: v for k, v in table.items() if k not in measured} == {
            k: v for k, v in own.items() if k not in measured
        }


def test_batches_of_one_and_of_sixteen_give_the_same_answers_and_scores(
    folder: Path, benchmarks: tuple[BenchmarkSource, ...], tmp_path: Path
):
    task = BenchmarkTask.CHARTQA
    shutil.copytree(folder / "trained", tmp_path / "store")
    write_config(tmp_path, tuple(source for source in benchmarks if source.task is task))
    arguments = ("--batch-size", 1, "--json", tmp_path / "summary.json")
    run(Stage.EVALUATE, tmp_path, tmp_path / "store", *arguments)
    one, sixteen = summary(tmp_path), summary(folder)
    reference = one["artifacts"]["evaluate"][task.value]
    assert reference == sixteen["artifacts"]["evaluate"][task.value], "batch size is no identity"
    columns = ["method", "question_id", "prediction", "score", "boxes"]
    frames = [
        ArtifactStore(str(place / "store")).read_frame(ArtifactRef.parse(reference))
        for place in (tmp_path, folder)
    ]
    assert frames[0].select(columns).equals(frames[1].select(columns))
    assert frames[0]["boxes"].list.len().sum() > NUM_DOCUMENTS / 2
    figures = [found["benchmarks"][task.value]["figures"] for found in (one, sixteen)]
    assert figures[0] == figures[1]
