"""How many questions a run's sources have: as committed, or estimated before they are read."""

from collections.abc import Iterable, Mapping, Sequence

from data_contracts.artifact import Manifest
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
from tasks.made_so_far import MadeSoFar
from tasks.plan import NUM_RECORDS, num_usable
from tasks.planned_files import PlannedFile

Made = Mapping[tuple[Stage, str], MadeSoFar]
"""What is known of the artifact of each stage and source."""

_BYTES_PER_RECORD = 1550
"""Of a mix's JSON: llava_v1_5_mix665k.json has 1.03 GB for 665,298 records."""
_BYTES_PER_PARQUET_ROW = 50_000
"""An image and little else; an estimate on the high side."""


def sources_of(config: PipelineConfig) -> tuple[EvaluationSource, ...]:
    """All sources: first those of training, then the held-out questions, then benchmarks."""
    evaluation = config.evaluation
    if evaluation is None:
        return config.sources
    return (*config.sources, evaluation.source, *evaluation.benchmarks)


def num_questions(
    config: PipelineConfig, source: EvaluationSource, files: Sequence[PlannedFile], made: Made
) -> int | None:
    """Questions of a source: those that can be asked once they are committed, else what its records
    or its size suggest, cut to the subset.

    None if nothing says how large it is.
    """
    questions = manifest_of(made, Stage.BUILD_JSONL, source.name)
    if questions is not None:
        return num_usable(questions)
    downloaded = manifest_of(made, Stage.DOWNLOAD, source.name)
    number = _num_published(config, source, files, downloaded)
    if number is None:
        return None
    number = max(1, round(number * _share(source.selection)))
    limit = config.records.max_records if source in config.sources else None
    return number if limit is None else min(number, limit)


def manifest_of(made: Made, stage: Stage, source: str) -> Manifest | None:
    """The commit record of one of a run's artifacts, if it is committed."""
    return made.get((stage, source), MadeSoFar()).manifest


def total(numbers: Iterable[int | None]) -> int | None:
    """The sum; None if any is unknown."""
    known = list(numbers)
    return None if None in known else sum(number or 0 for number in known)


def _num_published(
    config: PipelineConfig,
    source: EvaluationSource,
    files: Sequence[PlannedFile],
    downloaded: Manifest | None,
) -> int | None:
    """Questions before any selection."""
    match source:
        case SceneSource():
            return source.num_images * (2 if config.records.turns == "all" else 1)
        case BenchmarkSource():
            known = TASKS[source.task].num_documents
            return min(known, source.max_documents or known)
        case LlavaMixSource(expected_records=int(expected)):
            return expected
    if downloaded is not None:
        return int(downloaded.statistics[NUM_RECORDS])
    if isinstance(source, ParquetSource):
        size, each = total(file.num_bytes for file in files), _BYTES_PER_PARQUET_ROW
    else:
        size, each = files[0].num_bytes, _BYTES_PER_RECORD  # the records come first
    return None if size is None else size // each


def _share(selection: Selection) -> float:
    """Of the images that the chosen part takes."""
    held_out = selection.held_out_ratio
    return {"all": 1.0, "train": 1 - held_out, "held_out": held_out}[selection.part]
