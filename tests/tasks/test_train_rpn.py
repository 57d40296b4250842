"""What training says of itself: its steps, and labels that are too few."""

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import EvaluationConfig, PipelineConfig
from data_contracts.enums import Stage
from data_contracts.label_settings import LabelChanges, RegionChanges, RegionSettings
from data_contracts.sources import SceneSource
from data_contracts.training import TrainingConfig
from flows.execution import LocalExecution
from flows.wiring import Pipeline
from sdrpn_core.models.errors import ModelError
from sdrpn_core.rpn.checkpoint_files import CONFIG, WEIGHTS
from sdrpn_core.rpn.data import TrainingError
from tasks.artifacts.store import ArtifactStore
from tasks.models import profile_of
from tasks.recipes import CHECKPOINT_FILES
from tasks.rpn_files import stored_checkpoint
from tasks.train_rpn import train_rpn
from tasks.training_warnings import FEW_LABELS, FEW_STEPS
from tests.artifacts import stage_run
from tests.pipelines import write_tiny_pipeline


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    return write_tiny_pipeline(tmp_path_factory.mktemp("tiny"), num_images=6)


def training_of(config: PipelineConfig) -> TrainingConfig:
    return config.training_settings(profile_of(config.model))


def regions_of(config: PipelineConfig) -> RegionSettings:
    return config.region_settings(profile_of(config.model))


def pipeline_in(store: ArtifactStore, config: PipelineConfig) -> Pipeline:
    runtime = stage_run(store).runtime.model_copy(update={"store": store.root})
    return Pipeline(config, LocalExecution(runtime))


@pytest.fixture
def label_set(config: PipelineConfig, file_store: ArtifactStore) -> ArtifactRef:
    return pipeline_in(file_store, config).label_set()


@pytest.mark.parametrize(
    "settings",
    [
        {"regions": RegionChanges(crop_tokens=1)},
        {
            "evaluation": EvaluationConfig(
                source=SceneSource(name="held-out", num_images=1, seed=0), crop_tokens=1
            )
        },
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_crops_without_room_for_a_cell_stop_plan_and_run(
    config: PipelineConfig, file_store: ArtifactStore, settings: dict[str, Any]
):
    """LLaVA-OneVision's newline takes one token: answering refused it, after the training."""
    model = config.model.model_copy(update={"profile": "llava-onevision-0.5b"})
    pipeline = pipeline_in(file_store, config.model_copy(update={"model": model, **settings}))
    for begin in (next(pipeline.artifacts()), partial(pipeline.make, Stage.TRAIN_RPN)):
        with pytest.raises(ModelError, match="crop_tokens is 1: give at least 2"):
            begin()


def test_progress_is_told_in_steps_only(
    config: PipelineConfig, file_store: ArtifactStore, label_set: ArtifactRef
):
    """It began as "0 of 4", files, and went on as "1 of 2", steps."""
    told: list[tuple[str, int, int]] = []
    run = stage_run(file_store, on_progress=lambda *event: told.append(event))
    training = training_of(config).with_changes(num_epochs=3)
    train_rpn(run, label_set, config.model, training, regions_of(config))
    num_steps = told[0][2]
    assert num_steps >= 3
    assert told == [(Stage.TRAIN_RPN.value, step, num_steps) for step in range(num_steps + 1)]


def test_a_run_trains_for_the_profiles_regions_with_its_own_changes(
    config: PipelineConfig, file_store: ArtifactStore, label_set: ArtifactRef
):
    """The built-in model's profile has crops of 36 tokens; this run wants two regions as well."""
    changed = config.model_copy(update={"regions": RegionChanges(max_regions=2)})
    pipeline = pipeline_in(file_store, changed)
    assert pipeline.label_set() == label_set
    kept = stored_checkpoint(file_store, pipeline.rpn()).config.regions
    assert kept == profile_of(config.model).regions.with_changes(max_regions=2)


def test_a_training_that_learns_little_is_warned_of_once(
    config: PipelineConfig,
    file_store: ArtifactStore,
    label_set: ArtifactRef,
    caplog: pytest.LogCaptureFixture,
):
    """Nothing told a user's ten pictures from data that an RPN can learn from.

    Nor that a recipe for many labels makes one step of them, nor what came of it.
    """
    for _ in range(2):
        train_rpn(
            stage_run(file_store), label_set, config.model, training_of(config), regions_of(config)
        )
    labels, steps, learnt = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    num_questions = file_store.manifest(label_set).num_rows
    assert f"labels to train on (of {num_questions} questions)" in labels
    assert f"fewer than {FEW_LABELS} " in labels
    assert steps.startswith(f"fewer than {FEW_STEPS} training steps (about 1) ")
    assert "lower training.batch_size (4)" in steps
    assert learnt.startswith("the RPN hardly tells foreground from background on validation images")


def test_where_most_questions_give_no_label_it_is_told_what_became_of_them(
    config: PipelineConfig, file_store: ArtifactStore, caplog: pytest.LogCaptureFixture
):
    """All that was said is that none of the images had labels."""
    strict = config.model_copy(update={"labels": LabelChanges(max_box_area_ratio=1e-6)})
    labels = pipeline_in(file_store, strict).label_set()
    with pytest.raises(TrainingError, match="0 of the images have labels"):
        train_rpn(
            stage_run(file_store), labels, config.model, training_of(config), regions_of(config)
        )
    (told,) = [r.getMessage() for r in caplog.records if "give a label" in r.getMessage()]
    manifest = file_store.manifest(labels)
    assert told.startswith(f"0 of {manifest.num_rows} questions give a label (others: ")
    assert " box_too_large" in told
    assert f"`sdrpn artifacts show {labels} --rejected`" in told


def test_other_regions_take_the_weights_and_choose_a_threshold(
    config: PipelineConfig,
    file_store: ArtifactStore,
    label_set: ArtifactRef,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    """They trained the same network once more, hours beside a large model."""
    untouched = ArtifactStore(str(shutil.copytree(file_store.root, tmp_path / "untouched")))
    others = regions_of(config).with_changes(
        threshold_is_peak_ratio=False, blur_sigma=None, max_regions=2
    )

    def train(store: ArtifactStore, regions: RegionSettings, told: list[int]) -> ArtifactRef:
        run = stage_run(store, on_progress=lambda stage, step, steps: told.append(step))
        return train_rpn(run, label_set, config.model, training_of(config), regions)

    steps, none, anew = list[int](), list[int](), list[int]()
    first = train(file_store, regions_of(config), steps)
    second = train(file_store, others, none)
    assert train(untouched, others, anew) == second != first
    assert steps == anew
    assert none == [0, len(CHECKPOINT_FILES)], "it takes no step, and tells of its files only"
    files = stored_checkpoint(file_store, second).to_files()
    assert files == stored_checkpoint(untouched, second).to_files()
    assert files[CONFIG] != stored_checkpoint(file_store, first).to_files()[CONFIG]
    assert f"{first} was trained for other regions" in caplog.text
    forced = stage_run(file_store, on_progress=lambda stage, step, n: none.append(step), force=True)
    train_rpn(forced, label_set, config.model, training_of(config), others)
    assert none == [0, len(CHECKPOINT_FILES), *steps], "made anew is trained anew"


def test_of_several_trained_rpns_a_sound_one_is_taken(
    config: PipelineConfig, file_store: ArtifactStore, label_set: ArtifactRef
):
    """Bytes that are not those that were committed are found out in reading."""
    told: list[int] = []

    def train(max_regions: int) -> ArtifactRef:
        run = stage_run(file_store, on_progress=lambda stage, step, steps: told.append(step))
        regions = regions_of(config).with_changes(max_regions=max_regions)
        return train_rpn(run, label_set, config.model, training_of(config), regions)

    first, _ = train(2), train(3)
    (weights,) = Path(file_store.root).glob(f"{first}/files/*/{WEIGHTS}")
    weights.write_bytes(bytes(weights.stat().st_size))
    told.clear()
    train(4)
    assert told == [0, len(CHECKPOINT_FILES)]


def test_a_damaged_rpn_is_no_reason_to_stop(
    config: PipelineConfig,
    file_store: ArtifactStore,
    label_set: ArtifactRef,
    caplog: pytest.LogCaptureFixture,
):
    """What could be taken over cannot be read: it is trained anew."""
    first = train_rpn(
        stage_run(file_store), label_set, config.model, training_of(config), regions_of(config)
    )
    (weights,) = Path(file_store.root).glob(f"{first}/files/*/{WEIGHTS}")
    weights.write_bytes(bytes(weights.stat().st_size))
    others = regions_of(config).with_changes(max_regions=2)
    second = train_rpn(stage_run(file_store), label_set, config.model, training_of(config), others)
    assert stored_checkpoint(file_store, second).config.regions.max_regions == 2
    assert "its training is not used" in caplog.text
