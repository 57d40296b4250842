"""A whole pipeline small enough for tests: a tiny random model on a small mix of images."""

import json
from collections.abc import Callable
from pathlib import Path

import yaml

from data_contracts.calibration import BranchTraining, CalibrationSettings
from data_contracts.configs import (
    EvaluationConfig,
    ExtractionConfig,
    ModelConfig,
    PipelineConfig,
    RecordsConfig,
)
from data_contracts.label_settings import LabelChanges, LabelSettings
from data_contracts.profiles import ModelProfile
from data_contracts.sources import LlavaMixSource
from data_contracts.training import TrainingChanges
from tests.mixes import write_small_mix
from tests.tiny_models import tiny_llava

# A random model attends everywhere and never means what it says: accept its labels all the same.
LENIENT = LabelSettings(sink_threshold=None, max_box_area_ratio=1.0, foreground_ratio_threshold=0.8)


def write_benchmark(folder: Path, num_images: int) -> LlavaMixSource:
    """A small mix whose questions have true boxes."""
    source = write_small_mix(folder, num_images, first_seed=1000)
    rows = [
        {"image": record["image"], "turn": 0, "box": [4, 4, 20, 16], "layout": "objects"}
        for record in json.loads(Path(source.records).read_text())[:num_images]
    ]
    (folder / "boxes.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return source.model_copy(update={"name": "held_out", "boxes": f"{folder}/boxes.jsonl"})


def write_tiny_pipeline(folder: Path, num_images: int = 8) -> PipelineConfig:
    """Model, profile, two data sets and ``config.yaml`` in a folder."""
    profile = tiny_llava(folder / "model")
    (folder / "profile.yaml").write_text(yaml.safe_dump(profile.model_dump(mode="json")))
    config = PipelineConfig(
        name="tiny",
        sources=(write_small_mix(folder / "data", num_images),),
        model=ModelConfig(profile=f"{folder}/profile.yaml"),
        # The mixes hold one record of every unusable kind.
        records=RecordsConfig(rows_per_shard=4, max_failure_rate=0.5),
        extraction=ExtractionConfig(max_new_tokens=6, rows_per_shard=3),
        labels=LabelChanges(**LENIENT.model_dump()),
        training=TrainingChanges(batch_size=4, checkpoint_every=1),
        evaluation=EvaluationConfig(
            source=write_benchmark(folder / "held_out", 4),
            max_new_tokens=4,
            num_bootstrap=20,
            rows_per_shard=2,
        ),
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return config


def write_uncalibrated_pipeline(
    folder: Path, build: Callable[[Path], ModelProfile] = tiny_llava, **changes: object
) -> PipelineConfig:
    """The same with a model whose profile names no heads; they are looked for on few scenes.

    Args:
        folder: to write to.
        build: writes the model and returns its profile.
        changes: of the configuration.
    """
    config = write_tiny_pipeline(folder, num_images=12)
    profile = build(folder / "uncalibrated").model_copy(update={"heads": {}})
    (folder / "uncalibrated.yaml").write_text(yaml.safe_dump(profile.model_dump(mode="json")))
    changes = {
        "model": ModelConfig(profile=f"{folder}/uncalibrated.yaml"),
        "calibration": CalibrationSettings(
            num_scenes=16,
            max_new_tokens=64,
            num_head_candidates=4,
            num_sink_candidates=2,
            num_branch_candidates=1,
            branch_training=BranchTraining(num_epochs=1, batch_size=8),
        ),
        # Random models rarely end an answer early.
        "extraction": config.extraction.model_copy(update={"max_new_tokens": 64}),
        **changes,
    }
    config = config.model_copy(update=changes)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return config
