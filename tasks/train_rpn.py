"""Stage ``train-rpn``: a label set becomes an RPN checkpoint; resumes where it was stopped."""

import logging
from collections.abc import Iterator
from functools import partial

import polars as pl
from PIL import Image

from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.configs import ModelConfig
from data_contracts.enums import LabelStatus, Stage
from data_contracts.label_settings import RegionSettings
from data_contracts.training import TrainingConfig
from sdrpn_core.rpn.data import TrainingExample
from sdrpn_core.rpn.training import Metrics
from sdrpn_core.rpn.training import train_rpn as train
from tasks import recipes
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.models import adapter_for, model_identity, profile_of
from tasks.sources.files import load_image
from tasks.training_reuse import earlier_training
from tasks.training_warnings import lost_questions, training_warnings, validation_warnings
from tasks.work_progress import WorkProgress, run_working_stage

log = logging.getLogger(__name__)

_GRID = ("grid_height", "grid_width")
_COLUMNS = ("question_id", "image_uri", "image_sha256", "question", "labels", "status", *_GRID)


def train_rpn(
    run: StageRun,
    label_set: ArtifactRef,
    model: ModelConfig,
    settings: TrainingConfig,
    regions: RegionSettings,
) -> ArtifactRef:
    """Train on a label set."""
    recipe = recipes.training_recipe(
        label_set, settings, regions, profile_of(model), model_identity(model)
    )
    return run_working_stage(
        run,
        Stage.TRAIN_RPN,
        recipe,
        recipes.CHECKPOINT_FILES,
        partial(_train, run, recipe, label_set, model, settings, regions),
    )


def _train(
    run: StageRun,
    recipe: Recipe,
    label_set: ArtifactRef,
    model: ModelConfig,
    settings: TrainingConfig,
    regions: RegionSettings,
    progress: WorkProgress,
) -> dict[str, bytes]:
    writer = run.store.writer(recipe)
    trained = None if run.force else earlier_training(run.store, recipe)
    latest = None if trained else writer.latest_checkpoint()
    progress.goes_on_from(latest[0] if latest else 0)
    labelled = run.store.manifest(label_set)
    for warning in lost_questions(labelled) + training_warnings(labelled, settings):
        log.warning("%s", warning)
    checkpoint = train(
        adapter_for(model, run.runtime),
        training_examples(run.store, label_set),
        partial(_load_image, run.store),
        settings,
        shape=profile_of(model).rpn,
        regions=regions,
        label_set=str(label_set),
        micro_batch_size=run.runtime.batch_size,
        cache_bytes=int(run.runtime.feature_cache_gib * 2**30),
        resume=latest[1] if latest else None,
        save_checkpoint=writer.save_checkpoint,
        on_metrics=partial(_tell_step, progress),
        trained=trained,
    )
    for warning in validation_warnings(checkpoint.config.validation):
        log.warning("%s", warning)
    return checkpoint.to_files()


def _tell_step(progress: WorkProgress, metrics: Metrics) -> None:
    """Pass an entry of the training log on if it is a step."""
    if "num_steps" in metrics:
        progress.of_work(int(metrics["step"]), int(metrics["num_steps"]))


def training_examples(store: ArtifactStore, label_set: ArtifactRef) -> Iterator[TrainingExample]:
    """Labelled questions of a label set."""
    for labels in store.row_groups(label_set, _COLUMNS):
        rows = labels.filter(pl.col("status") == LabelStatus.OK.value)
        for row, cells in zip(
            rows.drop("labels").iter_rows(named=True), rows["labels"], strict=True
        ):
            yield TrainingExample(
                question_id=row["question_id"],
                image_uri=row["image_uri"],
                image_key=row["image_sha256"] or row["image_uri"],
                question=row["question"],
                labels=cells.to_numpy().reshape([row[name] for name in _GRID]),
            )


def _load_image(store: ArtifactStore, example: TrainingExample) -> Image.Image:
    has_digest = example.image_key != example.image_uri
    return load_image(store, example.image_uri, example.image_key if has_digest else None)
