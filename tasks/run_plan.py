"""What a run will fetch, make and cost, before it starts: facts where servers give them, and
estimates that say so."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_contracts.configs import PipelineConfig, RuntimeConfig
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
from sdrpn_core.reference.backgrounds import ScenesUnavailable, photograph_folder
from tasks.fetching.addresses import downloads_folder, free_bytes
from tasks.models import profile_of
from tasks.plan import IMAGES_PER_SHARD
from tasks.planned_files import PlannedFile, planned_files, unique_files

_GIB = 1 << 30
_BYTES_PER_RECORD = 1550
"""Of a mix's JSON: llava_v1_5_mix665k.json has 1.03 GB for 665,298 records."""
_BYTES_PER_PARQUET_ROW = 50_000
"""An image and little else; an estimate on the high side."""
_ATTENTION_BYTES = 8_000
"""Two maps of 576 cells, a label grid and text, compressed."""
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


@dataclass(frozen=True)
class RunPlan:
    """A run before it starts."""

    files: tuple[PlannedFile, ...]
    stages: tuple[PlannedStage, ...]
    fetch_bytes: int
    convert_bytes: int
    """Of Parquet files and gzipped archives rewritten beside them; about as much as they have."""
    copied_bytes: int
    """Of archives that go into the store."""
    store_bytes: int
    free_bytes: int
    downloads_folder: str
    problem: str | None
    """What must be done before the run can get past its downloads."""

    @property
    def gpu_hours(self) -> float:
        """Over all stages that can be estimated, on one A6000-class card."""
        return sum(stage.gpu_hours or 0.0 for stage in self.stages)

    @property
    def is_estimated(self) -> bool:
        """Whether all stages can be."""
        return all(stage.gpu_hours is not None for stage in self.stages)

    @property
    def unknown_files(self) -> tuple[PlannedFile, ...]:
        """Files whose servers could not be asked; what they would add is in no figure."""
        return tuple(file for file in self.files if file.problem is not None)

    @property
    def fits(self) -> bool:
        """Whether what is fetched and made fits on the disk that files are fetched to."""
        needed = self.fetch_bytes + self.convert_bytes + self.copied_bytes + self.store_bytes
        return needed <= self.free_bytes


def plan_run(config: PipelineConfig, runtime: RuntimeConfig) -> RunPlan:
    """Stages, sizes, shards, GPU time and disk of a run.

    Servers are given little time: what does not answer stays unknown.

    Raises:
        SdrpnError: if a server does not have a file.
    """
    sources = _sources(config)
    by_source = planned_files(sources, _impatient(runtime), allow_silence=True)
    files = unique_files(by_source)
    folder = downloads_folder(runtime)
    numbers = {s.name: _num_questions(config, s, by_source[s.name]) for s in sources}
    stages = [stage for s in sources for stage in _stages(config, s, numbers[s.name])]
    train = _total(numbers[source.name] for source in config.sources)
    stages.append(_training(config, train))
    return RunPlan(
        files=files,
        stages=(*_calibration(config), *stages),
        fetch_bytes=sum(file.num_missing or 0 for file in files),
        convert_bytes=sum(file.num_bytes or 0 for file in files if file.is_rewritten),
        copied_bytes=sum(file.num_bytes or 0 for file in files if file.is_copied),
        store_bytes=sum(number or 0 for number in numbers.values()) * _ATTENTION_BYTES,
        free_bytes=free_bytes(folder),
        downloads_folder=str(folder),
        problem=_problem(config),
    )


def _impatient(runtime: RuntimeConfig) -> RuntimeConfig:
    """Settings for asking what can wait for an answer until the run itself."""
    settings = runtime.downloads
    quick = {
        "max_attempts": min(settings.max_attempts, 2),
        "connect_timeout": min(settings.connect_timeout, 5.0),
        "read_timeout": min(settings.read_timeout, 10.0),
        "first_wait": min(settings.first_wait, 0.5),
        "max_wait": min(settings.max_wait, 5.0),
    }
    return runtime.model_copy(update={"downloads": settings.model_copy(update=quick)})


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


def _problem(config: PipelineConfig) -> str | None:
    """Scenes that cannot be generated: a source's, or those that calibrate the model."""
    has_scenes = any(isinstance(source, SceneSource) for source in _sources(config))
    if profile_of(config.model).is_calibrated and not has_scenes:
        return None
    try:
        photograph_folder()
    except ScenesUnavailable as error:
        return str(error)
    return None


def _sources(config: PipelineConfig) -> tuple[EvaluationSource, ...]:
    evaluation = config.evaluation
    if evaluation is None:
        return config.sources
    return (*config.sources, evaluation.source, *evaluation.benchmarks)


def _num_questions(
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


def _stages(
    config: PipelineConfig, source: EvaluationSource, number: int | None
) -> list[PlannedStage]:
    size = _relative_size(config)

    def stage(kind: Stage, per_shard: int, seconds: float = 0.0) -> PlannedStage:
        if number is None:
            return PlannedStage(kind, source.name, None, None, None if seconds else 0.0)
        shards = max(1, math.ceil(number / per_shard))
        return PlannedStage(kind, source.name, number, shards, number * seconds * size / 3600)

    first = [
        stage(Stage.DOWNLOAD, IMAGES_PER_SHARD),
        stage(Stage.BUILD_JSONL, config.records.rows_per_shard),
    ]
    if source in config.sources:
        rows = config.extraction.rows_per_shard
        extract = stage(Stage.EXTRACT_ATTENTION, rows, _EXTRACT_SECONDS)
        return [*first, extract, stage(Stage.MAKE_LABELS, rows)]
    assert config.evaluation is not None
    seconds = _EVALUATE_SECONDS * len(config.evaluation.methods)
    return [*first, stage(Stage.EVALUATE, config.evaluation.rows_per_shard, seconds)]


def _relative_size(config: PipelineConfig) -> float:
    """Work per question relative to LLaVA-1.5-7B, from layers and heads of 128."""
    profile = profile_of(config.model)
    return profile.num_layers * profile.num_heads**2 / _SIZE_7B
