"""The plan of a run that an earlier one began or ended: what is left, and nothing else."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from data_contracts.artifact import ArtifactRef, Manifest
from data_contracts.configs import PipelineConfig
from data_contracts.enums import Stage
from data_contracts.json_lines import json_lines
from data_contracts.label_settings import RegionChanges
from data_contracts.profiles import ModelProfile
from data_contracts.runtime import RuntimeConfig
from flows.dry_run import plan_run
from flows.execution import LocalExecution
from flows.outcome import RunOutcome
from flows.run import run_pipeline
from sdrpn_core.models.dimensions import ModelDimensions, model_dimensions
from tasks.loaded_model import release_model
from tasks.planning.run_plan import RunPlan
from tasks.planning.stages import PlannedStage
from tasks.sources.benchmark_files import TABLE_LABEL
from tests.e2e.command_line import FirstRun, first_run, sdrpn
from tests.pipelines import write_tiny_pipeline

pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("no_server")]

BEFORE_LABELS = {Stage.DOWNLOAD, Stage.BUILD_JSONL, Stage.EXTRACT_ATTENTION}
SOURCES = ("small", "held_out")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    folder = tmp_path_factory.mktemp("finished")
    config = write_tiny_pipeline(folder)
    assert config.evaluation is not None
    evaluation = config.evaluation.model_copy(update={"threshold_sweep": (0.2,)})
    config = config.model_copy(update={"evaluation": evaluation})
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return first_run(folder, config)


@pytest.fixture
def store(finished: FirstRun, tmp_path: Path) -> Path:
    """What the finished run left, to take something away from."""
    return shutil.copytree(finished.store.root, tmp_path / "store")


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def refuse(*arguments: object, **settings: object) -> None:
    raise AssertionError("a plan loads no model")


def plan_in(store: Path, config: PipelineConfig) -> RunPlan:
    before = contents(store)
    release_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.models.load_adapter", refuse)
        plan = plan_run(config, RuntimeConfig(store=str(store), device="cpu"))
    assert contents(store) == before, "a plan writes nothing"
    return plan


def stages_of(plan: RunPlan) -> dict[tuple[Stage, str], PlannedStage]:
    return {(stage.stage, stage.source): stage for stage in plan.stages}


def done(plan: RunPlan) -> set[tuple[Stage, str]]:
    return {key for key, stage in stages_of(plan).items() if stage.is_done}


def reused(outcome: RunOutcome) -> set[tuple[Stage, str]]:
    """Rows of a plan of which a run made nothing: answers and their results are one."""
    made = {(s.stage, s.label.removesuffix(" results")) for s in outcome.stages if not s.is_reused}
    return {(s.stage, s.label.removesuffix(" results")) for s in outcome.stages} - made


def test_after_a_finished_run_nothing_is_left(finished: FirstRun, store: Path):
    assert finished.result.exit_code == 0, finished.result.output
    plan = plan_in(store, finished.config)
    assert [stage for stage in plan.stages if not stage.is_done] == []
    assert plan.is_done
    assert (plan.gpu_hours, plan.fetch_bytes, plan.convert_bytes, plan.store_bytes) == (0, 0, 0, 0)
    counted = json.loads((finished.folder / "summary.json").read_text())["artifacts"]
    assert set(counted) == {stage.stage.value for stage in plan.stages}


def test_after_a_finished_run_the_plan_says_so(finished: FirstRun):
    before = contents(finished.folder)
    result = sdrpn("run", "--dry-run", *finished.options)
    assert result.exit_code == 0, result.output
    assert contents(finished.folder) == before
    assert "to do" not in result.stdout
    for text in (
        "to fetch: 0.0 MiB",
        "to store: about 0.0 MiB",
        "GPU time: none, nothing that is left runs the model",
        "everything is made: a run would only look it up",
    ):
        assert text in result.stdout, text


def test_numbers_of_what_is_committed_are_those_that_were_counted(finished: FirstRun, store: Path):
    plan = stages_of(plan_in(store, finished.config))

    def manifest(stage: Stage, label: str) -> Manifest:
        ref = ArtifactRef.parse(finished.summary["artifacts"][stage.value][label])
        return finished.store.manifest(ref)

    extracted = manifest(Stage.EXTRACT_ATTENTION, "small")
    for key in ((Stage.BUILD_JSONL, "small"), (Stage.EXTRACT_ATTENTION, "small")):
        assert plan[key].num_shards == len(manifest(*key).shards)
        assert plan[key].num_units == extracted.num_rows
    accepted = manifest(Stage.MERGE_LABELS, "all").statistics["status.ok"]
    assert plan[Stage.TRAIN_RPN, ""].num_units == accepted


@pytest.mark.parametrize("until", [Stage.BUILD_JSONL, Stage.EXTRACT_ATTENTION, Stage.TRAIN_RPN])
def test_of_a_run_that_was_stopped_the_rest_is_left(finished: FirstRun, store: Path, until: Stage):
    whole = stages_of(plan_in(store / "empty", finished.config))
    after = tuple(Stage)[tuple(Stage).index(until) + 1 :]
    for stage in after:
        shutil.rmtree(store / stage.value)
    plan = plan_in(store, finished.config)
    assert done(plan) == {key for key in whole if key[0] not in after}
    for key, stage in stages_of(plan).items():
        is_left = key[0] in after
        assert (stage.gpu_hours == 0) == (not is_left or whole[key].gpu_hours == 0), key
        assert (stage.store_bytes == 0) == (not is_left or whole[key].store_bytes == 0), key


def test_before_anything_is_made_everything_is_left(finished: FirstRun, tmp_path: Path):
    plan = plan_in(tmp_path / "empty", finished.config)
    assert done(plan) == set()
    assert plan.unknown_stages == ()
    assert not (tmp_path / "empty").exists()
    assert [(stage.stage, stage.source) for stage in plan.stages] == [
        *((stage, name) for name in SOURCES for stage in (Stage.DOWNLOAD, Stage.BUILD_JSONL)),
        (Stage.EXTRACT_ATTENTION, "small"),
        (Stage.MAKE_LABELS, "small"),
        (Stage.MERGE_LABELS, ""),
        (Stage.TRAIN_RPN, ""),
        (Stage.EVALUATE, "held_out"),
        (Stage.EVALUATE, "held_out at 0.2"),
        (Stage.EVALUATE, TABLE_LABEL),
        (Stage.REPORT, ""),
    ]


def test_resume_points_and_pictures_were_not_counted(finished: FirstRun):
    """Of 0.9 MiB that a run left, its plan told of a fifth."""
    planned: Counter[Stage] = Counter()
    for stage in plan_in(finished.folder / "empty", finished.config).stages:
        planned[stage.stage] += stage.store_bytes
    root = Path(finished.store.root)
    left = {kind: sum(size for _, size in contents(root / kind.value).values()) for kind in planned}
    # Pictures of noise, 40 pixels wide, are smaller than others.
    assert planned.pop(Stage.REPORT) > left.pop(Stage.REPORT)
    # One step is made rather than two, as some questions turn out to be none.
    assert 1 < planned.pop(Stage.TRAIN_RPN) / left.pop(Stage.TRAIN_RPN) < 2
    assert sum(planned.values()) == pytest.approx(sum(left.values()), rel=0.3)


def test_of_a_stage_that_was_stopped_the_missing_shards_are_left(finished: FirstRun, store: Path):
    key = (Stage.EXTRACT_ATTENTION, "small")
    for stage in tuple(Stage)[tuple(Stage).index(Stage.MAKE_LABELS) :]:
        shutil.rmtree(store / stage.value)
    (artifact,) = (store / Stage.EXTRACT_ATTENTION.value).iterdir()
    (artifact / "manifest.json").unlink()
    whole = stages_of(plan_in(store / "empty", finished.config))[key]
    begun = stages_of(plan_in(store, finished.config))[key]
    assert (begun.is_done, begun.made.num_done, begun.num_shards) == (False, 3, 3)
    assert begun.gpu_hours == 0
    (artifact / "receipts" / "00001.json").unlink()
    two = stages_of(plan_in(store, finished.config))[key]
    assert (two.made.num_done, two.num_shards) == (2, 3)
    assert two.gpu_hours is not None
    assert whole.gpu_hours is not None
    assert two.gpu_hours / (two.num_units or 0) == pytest.approx(
        whole.gpu_hours / (whole.num_units or 0) / 3
    )
    options = ("--config", finished.folder / "config.yaml", "--store", store)
    assert "2 of 3 shards done" in sdrpn("run", "--dry-run", *options).stdout


def test_training_goes_on_from_its_resume_point(finished: FirstRun, store: Path):
    for stage in (Stage.EVALUATE, Stage.REPORT):
        shutil.rmtree(store / stage.value)
    (artifact,) = (store / Stage.TRAIN_RPN.value).iterdir()
    (artifact / "manifest.json").unlink()
    shutil.rmtree(artifact / "receipts")
    shutil.rmtree(artifact / "checkpoints", ignore_errors=True)
    from_start = stages_of(plan_in(store, finished.config))[Stage.TRAIN_RPN, ""]
    (artifact / "checkpoints" / "step-00000001").mkdir(parents=True)
    (metrics,) = (artifact / "files").glob("*/metrics.jsonl")
    log = json_lines(metrics.read_bytes())
    num_steps = max(entry["num_steps"] for entry in log if "num_steps" in entry)
    resumed = stages_of(plan_in(store, finished.config))[Stage.TRAIN_RPN, ""]
    assert from_start.gpu_hours
    assert resumed.gpu_hours == pytest.approx(from_start.gpu_hours * (1 - 1 / num_steps))
    options = ("--config", finished.folder / "config.yaml", "--store", store)
    said = f"to do from step 1 of about {num_steps}"
    assert said in sdrpn("run", "--dry-run", *options).stdout


def test_with_other_regions_the_training_is_there(finished: FirstRun, store: Path):
    """Hours of it were planned, and done."""
    other = finished.config.model_copy(update={"regions": RegionChanges(max_regions=2)})
    path = store.parent / "other.yaml"
    path.write_text(yaml.safe_dump(other.model_dump(mode="json")))
    plan = stages_of(plan_in(store, other))[Stage.TRAIN_RPN, ""]
    assert not plan.is_done
    assert plan.gpu_hours is not None
    assert plan.gpu_hours > 0, "held-out questions are looked at"
    result = sdrpn("run", "--dry-run", "--config", str(path), "--store", str(store))
    assert "to do, trained for other regions" in result.stdout
    for weights in store.glob("train-rpn/*/files/*/rpn.safetensors"):
        weights.unlink()
    without = stages_of(plan_in(store, other))[Stage.TRAIN_RPN, ""]
    assert without.gpu_hours is not None
    assert without.gpu_hours > 5 * plan.gpu_hours, "what is gone cannot be taken"
    assert without.store_bytes > plan.store_bytes, "a training keeps resume points"


def test_resume_points_that_are_there_are_not_counted_again(finished: FirstRun, store: Path):
    (artifact,) = (store / Stage.TRAIN_RPN.value).iterdir()
    (resume_point,) = (artifact / "checkpoints").iterdir()
    (artifact / "manifest.json").unlink()
    with_it = stages_of(plan_in(store, finished.config))[Stage.TRAIN_RPN, ""]
    num_bytes = sum(size for _, size in contents(resume_point).values())
    shutil.rmtree(artifact / "checkpoints")
    without = stages_of(plan_in(store, finished.config))[Stage.TRAIN_RPN, ""]
    assert without.store_bytes - with_it.store_bytes == pytest.approx(num_bytes, rel=0.1)


def test_answers_without_their_results_need_no_gpu(
    finished: FirstRun, store: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where the model is not on this machine, their GPU time was called a guess."""
    shutil.rmtree(store / Stage.REPORT.value)
    for manifest in (store / Stage.EVALUATE.value).glob("*/manifest.json"):
        if json.loads(manifest.read_text())["recipe"]["schema_id"] == "files":
            shutil.rmtree(manifest.parent)
    plan = plan_in(store, finished.config)
    left = {(stage.stage, stage.source) for stage in plan.stages} - done(plan)
    assert left == {
        *((Stage.EVALUATE, name) for name in ("held_out", "held_out at 0.2", TABLE_LABEL)),
        (Stage.REPORT, ""),
    }
    assert plan.gpu_hours == 0
    monkeypatch.setattr("tasks.planning.run_plan.model_dimensions", guessed)
    assert not plan_in(store, finished.config).are_sizes_guessed
    shutil.rmtree(store / Stage.TRAIN_RPN.value)
    assert plan_in(store, finished.config).are_sizes_guessed


def guessed(profile: ModelProfile) -> ModelDimensions:
    return replace(model_dimensions(profile), are_read=False)


def with_other_threshold(config: PipelineConfig) -> PipelineConfig:
    assert config.labels is not None
    threshold = config.labels.foreground_ratio_threshold - 0.2
    labels = config.labels.model_copy(update={"foreground_ratio_threshold": threshold})
    return config.model_copy(update={"labels": labels})


def test_with_another_label_threshold_labels_and_what_follows_are_left(
    finished: FirstRun, store: Path
):
    plan = plan_in(store, with_other_threshold(finished.config))
    assert {stage for stage, _ in done(plan)} == BEFORE_LABELS
    left = [stage for stage in plan.stages if stage.stage not in BEFORE_LABELS]
    assert not any(stage.is_done for stage in left)
    assert plan.gpu_hours == sum(stage.gpu_hours or 0 for stage in left) > 0


def test_a_run_reuses_what_its_plan_calls_done(finished: FirstRun, store: Path):
    changed = with_other_threshold(finished.config)
    plan = plan_in(store, changed)
    outcome = run_pipeline(changed, LocalExecution(RuntimeConfig(store=str(store), device="cpu")))
    assert reused(outcome) == done(plan)
    ran = {(stage.stage, stage.label.removesuffix(" results")) for stage in outcome.stages}
    assert ran == set(stages_of(plan))
    assert plan_in(store, changed).is_done


def test_a_source_that_is_copied_is_another_one(finished: FirstRun, store: Path, tmp_path: Path):
    data = shutil.copytree(finished.folder / "data", tmp_path / "data")
    (source,) = finished.config.sources
    moved = source.model_copy(
        update={"records": f"{data}/mix.json", "images": f"{data}/images", "copy_images": True}
    )
    config = finished.config.model_copy(update={"sources": (moved,)})
    assert {key for key in done(plan_in(store, config)) if key[1] == "small"} == set()


def test_what_could_not_be_looked_up_is_named(finished: FirstRun, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.planning.unread_sources.READ_LIMIT", -1)
    result = sdrpn("run", "--dry-run", *finished.options)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == (
        "not looked up, so taken for still to do with all that follows: download small, download "
        "held_out (0 GiB would have to be read)"
    )


def test_a_damaged_receipt_stops_the_plan_as_it_stops_the_run(finished: FirstRun, store: Path):
    (artifact,) = (store / Stage.EXTRACT_ATTENTION.value).iterdir()
    (artifact / "manifest.json").unlink()
    (artifact / "receipts" / "00001.json").write_text("")
    options = ("--config", finished.folder / "config.yaml", "--store", store)
    for dry in ((), ("--dry-run",)):
        result = sdrpn("run", *dry, *options)
        assert result.exit_code == 1, result.output
        assert "receipts/00001.json: is not a ShardEntry" in result.stderr
