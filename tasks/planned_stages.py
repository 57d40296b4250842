"""The stages of a run before it starts, in the order they run, with estimates of their size and
GPU time as if nothing were committed yet."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from data_contracts.configs import PipelineConfig
from data_contracts.enums import Stage
from data_contracts.sources import (
    BenchmarkSource,
    EvaluationSource,
    LlavaMixSource,
    ParquetSource,
    SceneSource,
    Selection,
)
from sdrpn_core.benchmarks.tasks import TASKS
from tasks.models import profile_of
from tasks.plan import IMAGES_PER_SHARD
from tasks.planned_files import PlannedFile

_BYTES_PER_RECORD = 1550
"""Of a mix's JSON: llava_v1_5_mix665k.json has 1.03 GB for 665,298 records."""
_BYTES_PER_PARQUET_ROW = 50_000
"""An image and little else; an estimate on the high side."""
_TRAIN_SECONDS = 0.38
"""One question, one epoch, LLaVA-1.5-7B on an A6000: 152k in 4 hours on 4 of them (the paper)."""
_FROZEN_SHARE = 0.6
"""Of that: the frozen layers, 15 forward against 3 forward and backward; calibration's trainings
compute them once and keep what comes out."""
_EXTRACT_SECONDS = 0.30
"""Prefill and a short answer on the same card; an estimate."""
_EVALUATE_SECONDS = 0.40
_SIZE_7B = 32 * 32 * 32


@dataclass(frozen=True)
class PlannedStage:
    """One stage for one source."""

    stage: Stage
    source: str
    num_units: int | None
    """Questions or images; an estimate where the source has not been read, and None where not even
    its size is known."""
    num_shards: int | None
    gpu_hours: float | None


def sources_of(config: PipelineConfig) -> tuple[EvaluationSource, ...]:
    """All sources: first those of training, then the held-out questions, then benchmarks."""
    evaluation = config.evaluation
    if evaluation is None:
        return config.sources
    return (*config.sources, evaluation.source, *evaluation.benchmarks)


def planned_stages(
    config: PipelineConfig, numbers: Mapping[str, int | None]
) -> tuple[PlannedStage, ...]:
    """Every stage, in the order they run.

    Args:
        config: of the run.
        numbers: questions of each source, see ``num_questions``.
    """
    total = _total(numbers[source.name] for source in config.sources)
    return (
        *_calibration(config),
        *(s for source in sources_of(config) for s in _questions(config, source, numbers)),
        *(s for source in config.sources for s in _labels(config, source.name, numbers)),
        # One shard for each data set that the records turn out to name.
        PlannedStage(Stage.MERGE_LABELS, "", total, None, 0.0),
        _training(config, total),
        *_evaluations(config, numbers),
        PlannedStage(Stage.REPORT, "", total, 1, 0.0),
    )


def _questions(
    config: PipelineConfig, source: EvaluationSource, numbers: Mapping[str, int | None]
) -> list[PlannedStage]:
    number, rows = numbers[source.name], config.records.rows_per_shard
    return [
        _sharded(Stage.DOWNLOAD, source.name, number, IMAGES_PER_SHARD),
        _sharded(Stage.BUILD_JSONL, source.name, number, rows),
    ]


def _labels(
    config: PipelineConfig, name: str, numbers: Mapping[str, int | None]
) -> list[PlannedStage]:
    number, rows = numbers[name], config.extraction.rows_per_shard
    seconds = _EXTRACT_SECONDS * _relative_size(config)
    return [
        _sharded(Stage.EXTRACT_ATTENTION, name, number, rows, seconds),
        _sharded(Stage.MAKE_LABELS, name, number, rows),
    ]


def _evaluations(config: PipelineConfig, numbers: Mapping[str, int | None]) -> list[PlannedStage]:
    """All methods, then SD-RPN alone once more with each further region threshold."""
    evaluation = config.evaluation
    if evaluation is None:
        return []
    seconds, rows = _EVALUATE_SECONDS * _relative_size(config), evaluation.rows_per_shard
    names = [source.name for source in (evaluation.source, *evaluation.benchmarks)]
    at_its_own = [
        _sharded(Stage.EVALUATE, name, numbers[name], rows, seconds * len(evaluation.methods))
        for name in names
    ]
    swept = [
        _sharded(Stage.EVALUATE, f"{name} at {threshold:g}", numbers[name], rows, seconds)
        for name in names
        for threshold in sorted(set(evaluation.threshold_sweep))
    ]
    return at_its_own + swept


def _sharded(
    kind: Stage, source: str, number: int | None, per_shard: int, seconds: float = 0.0
) -> PlannedStage:
    """A stage that spends so many seconds of a GPU on each question."""
    if number is None:
        return PlannedStage(kind, source, None, None, None if seconds else 0.0)
    shards = max(1, math.ceil(number / per_shard))
    return PlannedStage(kind, source, number, shards, number * seconds / 3600)


def _calibration(config: PipelineConfig) -> list[PlannedStage]:
    """Where the profile needs it: every question is asked, then looked at in every training."""
    if profile_of(config.model).is_calibrated:
        return []
    settings = config.calibration
    number = settings.num_scenes * settings.questions_per_scene
    shares = _FROZEN_SHARE + (1 - _FROZEN_SHARE) * settings.branch_training.num_epochs
    seconds = _EXTRACT_SECONDS + settings.num_branch_candidates * shares * _TRAIN_SECONDS
    hours = number * seconds * _relative_size(config) / 3600
    return [PlannedStage(Stage.CALIBRATE, "", number, 1, hours)]


def _training(config: PipelineConfig, number: int | None) -> PlannedStage:
    if number is None:
        return PlannedStage(Stage.TRAIN_RPN, "", None, 1, None)
    hours = number * config.training.num_epochs * _TRAIN_SECONDS * _relative_size(config) / 3600
    return PlannedStage(Stage.TRAIN_RPN, "", number, 1, hours)


def _total(numbers: Iterable[int | None]) -> int | None:
    """The sum; None if any is unknown."""
    known = list(numbers)
    return None if None in known else sum(number or 0 for number in known)


def num_questions(
    config: PipelineConfig, source: EvaluationSource, files: Sequence[PlannedFile]
) -> int | None:
    """Questions of a source: exact for scenes, else what its size suggests, cut to the subset.

    None if nothing says how large it is.
    """
    number = _num_published(config, source, files)
    if number is None:
        return None
    number = max(1, round(number * _share(source.selection)))
    limit = config.records.max_records if source in config.sources else None
    return number if limit is None else min(number, limit)


def _num_published(
    config: PipelineConfig, source: EvaluationSource, files: Sequence[PlannedFile]
) -> int | None:
    """Questions before any selection."""
    match source:
        case SceneSource():
            return source.num_images * (2 if config.records.turns == "all" else 1)
        case BenchmarkSource():
            known = TASKS[source.task].num_documents
            return min(known, source.max_documents or known)
        case ParquetSource():
            size = _total(file.num_bytes for file in files)
            return None if size is None else size // _BYTES_PER_PARQUET_ROW
        case LlavaMixSource(expected_records=int(expected)):
            return expected
        case _:
            size = files[0].num_bytes  # the records come first
            return None if size is None else size // _BYTES_PER_RECORD


def _share(selection: Selection) -> float:
    """Of the images that the chosen part takes."""
    held_out = selection.held_out_ratio
    return {"all": 1.0, "train": 1 - held_out, "held_out": held_out}[selection.part]


def _relative_size(config: PipelineConfig) -> float:
    """Work per question relative to LLaVA-1.5-7B, from layers and heads of 128."""
    profile = profile_of(config.model)
    return profile.num_layers * profile.num_heads**2 / _SIZE_7B
