"""What training says of itself: its steps, and labels that are too few."""

import logging

import pytest

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import PipelineConfig
from data_contracts.enums import Stage
from flows.execution import LocalExecution
from flows.wiring import Pipeline
from tasks.artifact_store import ArtifactStore
from tasks.train_rpn import FEW_LABELS, train_rpn
from tests.artifacts import stage_run
from tests.pipelines import write_tiny_pipeline


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    return write_tiny_pipeline(tmp_path_factory.mktemp("tiny"), num_images=6)


@pytest.fixture
def label_set(config: PipelineConfig, file_store: ArtifactStore) -> ArtifactRef:
    runtime = stage_run(file_store).runtime.model_copy(update={"store": file_store.root})
    return Pipeline(config, LocalExecution(runtime)).label_set()


def test_progress_is_told_in_steps_only(
    config: PipelineConfig, file_store: ArtifactStore, label_set: ArtifactRef
):
    """It began as "0 of 4", files, and went on as "1 of 2", steps."""
    told: list[tuple[str, int, int]] = []
    run = stage_run(file_store, on_progress=lambda *event: told.append(event))
    training = config.training.model_copy(update={"num_epochs": 3})
    train_rpn(run, label_set, config.model, training, config.regions)
    num_steps = told[0][2]
    assert num_steps >= 3
    assert told == [(Stage.TRAIN_RPN.value, step, num_steps) for step in range(1, num_steps + 1)]


def test_few_labels_are_warned_of_once(
    config: PipelineConfig,
    file_store: ArtifactStore,
    label_set: ArtifactRef,
    caplog: pytest.LogCaptureFixture,
):
    """Nothing told a user's ten pictures from data that an RPN can learn from."""
    for _ in range(2):
        train_rpn(stage_run(file_store), label_set, config.model, config.training, config.regions)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    num_questions = file_store.manifest(label_set).num_rows
    assert f"labels to train on (of {num_questions} questions)" in warning
    assert f"fewer than {FEW_LABELS} " in warning
