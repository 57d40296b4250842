"""What a run makes, and says that it makes, of stages that an earlier run began or ended."""

from pathlib import Path

import pytest

from data_contracts.calibration import CalibrationSettings
from data_contracts.configs import PipelineConfig
from data_contracts.enums import Stage
from data_contracts.runtime import RuntimeConfig
from flows.execution import LocalExecution
from flows.outcome import RunOutcome
from flows.run import run_pipeline
from tasks.artifacts.store import ArtifactStore
from tasks.models import profile_of
from tests.pipelines import write_tiny_pipeline


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    return write_tiny_pipeline(tmp_path_factory.mktemp("resumed"))


def made_by(config: PipelineConfig, store: Path) -> dict[Stage, bool]:
    """Stages of a run up to training, and whether each was reused."""
    runtime = RuntimeConfig(store=str(store), device="cpu")
    outcome = run_pipeline(config, LocalExecution(runtime), Stage.TRAIN_RPN)
    return {stage.stage: stage.is_reused for stage in outcome.stages}


def test_resumed_stage_is_not_called_reused(config: PipelineConfig, tmp_path: Path) -> None:
    """A stage killed between its last receipt and its manifest was reported as reused."""
    assert not any(made_by(config, tmp_path).values())
    assert all(made_by(config, tmp_path).values())
    unfinished = (Stage.MAKE_LABELS, Stage.TRAIN_RPN)
    for stage in unfinished:
        (manifest,) = (tmp_path / stage.value).glob("*/manifest.json")
        manifest.unlink()
    again = made_by(config, tmp_path)
    assert {stage for stage, is_reused in again.items() if not is_reused} == set(unfinished)


def digests(store: Path, outcome: RunOutcome) -> dict[tuple[Stage, str], list[str]]:
    """Artifact and shard digests of every stage of a run, by stage and source."""
    opened = ArtifactStore(str(store))
    return {
        (made.stage, made.label): [
            str(made.ref),
            *(shard.sha256 for shard in opened.manifest(made.ref).shards),
        ]
        for made in outcome.stages
    }


def test_one_label_threshold_remakes_labels_and_what_follows(
    config: PipelineConfig, tmp_path: Path
) -> None:
    """Nothing before the labels is made again, nothing after them is kept."""
    assert config.labels is not None
    runtime = RuntimeConfig(store=str(tmp_path), device="cpu")
    threshold = config.labels.foreground_ratio_threshold - 0.2
    labels = config.labels.model_copy(update={"foreground_ratio_threshold": threshold})
    first = run_pipeline(config, LocalExecution(runtime))
    before = digests(tmp_path, first)
    second = run_pipeline(config.model_copy(update={"labels": labels}), LocalExecution(runtime))
    after = digests(tmp_path, second)

    assert after.keys() == before.keys()
    kept = {Stage.DOWNLOAD, Stage.BUILD_JSONL, Stage.EXTRACT_ATTENTION}
    assert {stage for stage, _ in before} == set(Stage) - {Stage.CALIBRATE}
    for key, artifact in before.items():
        assert (after[key] == artifact) == (key[0] in kept), key
    for made in second.stages:
        assert made.is_reused == (made.stage in kept), made
    # The first run's artifacts are still there as they were.
    assert digests(tmp_path, first) == before
    assert all(stage.is_reused for stage in run_pipeline(config, LocalExecution(runtime)).stages)


def test_settings_without_effect_change_nothing(
    config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A calibration that is not needed, and paths as seen from the working directory, which made
    the report once more under Prefect. Nor does writing the profile out change anything but the
    report, which shows it."""
    runtime = RuntimeConfig(store=str(tmp_path), device="cpu")
    run_pipeline(config, LocalExecution(runtime))
    settings = CalibrationSettings(num_scenes=99)
    other = config.model_copy(update={"calibration": settings})
    assert run_pipeline(other, LocalExecution(runtime)).is_reused
    folder = Path(str(config.model.profile)).parent
    monkeypatch.chdir(folder)
    seen_from_there = config.model_dump_json().replace(f"{folder}/", "")
    relative = PipelineConfig.model_validate_json(seen_from_there)
    assert relative != config
    assert run_pipeline(relative, LocalExecution(runtime)).is_reused
    written_out = config.model.model_copy(update={"profile": profile_of(config.model)})
    same = config.model_copy(update={"model": written_out})
    assert run_pipeline(same, LocalExecution(runtime), Stage.EVALUATE).is_reused
