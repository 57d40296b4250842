"""How many questions a run's sources have: as committed, or estimated before they are read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

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
from tasks.planning.counted_questions import counted_questions
from tasks.planning.files import PlannedFile
from tasks.planning.made_so_far import MadeSoFar
from tasks.shard_statistics import NUM_RECORDS, num_usable

Made = Mapping[tuple[Stage, str], MadeSoFar]
"""What is known of the artifact of each stage and source."""

_BYTES_PER_RECORD = 1550
"""Of a mix's JSON: llava_v1_5_mix665k.json has 1.03 GB for 665,298 records."""
_BYTES_PER_PARQUET_ROW = 50_000
"""An image and little else; an estimate on the high side."""


class Certainty(IntEnum):
    """What is known of a number, from the best."""

    COUNTED = 0
    AT_MOST = 1
    """Counted in the records, of which a run leaves out those without a readable image."""
    ABOUT = 2
    AT_LEAST = 3


@dataclass(frozen=True)
class NumQuestions:
    """How many questions there are, and how that is known."""

    number: int | None
    """None if nothing says how many."""
    certainty: Certainty
    num_records: int | None = None
    """All that the source's file has; None where they were not counted."""
    num_images: int | None = None
    """That the records of the chosen folders name; None where they were not counted."""

    @property
    def most_records(self) -> int | None:
        """Records, or as many as there are questions."""
        return self.number if self.num_records is None else self.num_records

    @property
    def most_images(self) -> int | None:
        """Images, or as many as there are questions: as if no two asked of one."""
        return self.number if self.num_images is None else self.num_images


def sources_of(config: PipelineConfig) -> tuple[EvaluationSource, ...]:
    """All sources: first those of training, then the held-out questions, then benchmarks."""
    evaluation = config.evaluation
    if evaluation is None:
        return config.sources
    return (*config.sources, evaluation.source, *evaluation.benchmarks)


def num_questions(
    config: PipelineConfig,
    source: EvaluationSource,
    files: Sequence[PlannedFile],
    downloads: Path,
    made: Made,
) -> NumQuestions:
    """Questions of a source: those that can be asked once they are committed, else what its records
    hold, or what their size suggests, cut to the subset.

    Args:
        config: of the run.
        source: one of its sources.
        files: of the source; a mix's records come first.
        downloads: where fetched files are kept.
        made: what is in the store.
    """
    questions = manifest_of(made, Stage.BUILD_JSONL, source.name)
    if questions is not None:
        return NumQuestions(num_usable(questions), Certainty.COUNTED)
    downloaded = manifest_of(made, Stage.DOWNLOAD, source.name)
    found = _num_published(config, source, files, downloads, downloaded)
    limit = config.records.max_records if source in config.sources else None
    return _cut(_part_of(found, source.selection), limit)


def _part_of(found: NumQuestions, selection: Selection) -> NumQuestions:
    """The chosen part of the images, which is drawn by what they show."""
    if found.number is None or selection.part == "all":
        return found
    held_out = selection.held_out_ratio
    share = held_out if selection.part == "held_out" else 1 - held_out
    number = max(min(1, found.number), round(found.number * share))
    return replace(found, number=number, certainty=max(found.certainty, Certainty.ABOUT))


def _cut(found: NumQuestions, limit: int | None) -> NumQuestions:
    if found.number is None or limit is None or found.number < limit:
        return found
    is_reached = found.certainty in (Certainty.COUNTED, Certainty.AT_LEAST)
    certainty = Certainty.COUNTED if is_reached else found.certainty
    return replace(found, number=limit, certainty=certainty)


def manifest_of(made: Made, stage: Stage, source: str) -> Manifest | None:
    """The commit record of one of a run's artifacts, if it is committed."""
    return made.get((stage, source), MadeSoFar()).manifest


def total(numbers: Iterable[NumQuestions]) -> NumQuestions:
    """The sum, as certain as the least certain; unknown if any is."""
    known = list(numbers)
    certainty = max((found.certainty for found in known), default=Certainty.COUNTED)
    if any(found.number is None for found in known):
        return NumQuestions(None, certainty)
    return NumQuestions(sum(found.number or 0 for found in known), certainty)


def _num_published(
    config: PipelineConfig,
    source: EvaluationSource,
    files: Sequence[PlannedFile],
    downloads: Path,
    downloaded: Manifest | None,
) -> NumQuestions:
    """Questions before any part is taken."""
    all_turns = config.records.turns == "all"
    match source:
        case SceneSource():
            return NumQuestions(source.num_images * (2 if all_turns else 1), Certainty.ABOUT)
        case LlavaMixSource(expected_records=int(expected)):
            return NumQuestions(expected, Certainty.AT_LEAST if all_turns else Certainty.ABOUT)
    counted = counted_questions(source, config.records, files, downloads)
    if isinstance(source, BenchmarkSource):
        published = TASKS[source.task].num_documents if counted is None else counted.number
        certainty = Certainty.ABOUT if counted is None else Certainty.AT_MOST
        return NumQuestions(min(published, source.max_documents or published), certainty)
    if counted is not None:
        certainty = Certainty.AT_MOST if counted.is_whole else Certainty.ABOUT
        return NumQuestions(counted.number, certainty, counted.num_records, counted.num_images)
    # A record has one question or more; how many more is not known before it is read.
    is_mix = isinstance(source, LlavaMixSource)
    certainty = Certainty.AT_LEAST if all_turns and is_mix else Certainty.ABOUT
    return NumQuestions(_num_records(source, files, downloaded), certainty)


def _num_records(
    source: EvaluationSource, files: Sequence[PlannedFile], downloaded: Manifest | None
) -> int | None:
    """As committed, or by the size of the files."""
    if downloaded is not None:
        return int(downloaded.statistics[NUM_RECORDS])
    if isinstance(source, ParquetSource):
        sizes = [file.num_bytes for file in files]
        known = [size for size in sizes if size is not None]
        size, each = sum(known) if len(known) == len(sizes) else None, _BYTES_PER_PARQUET_ROW
    else:
        size, each = files[0].num_bytes, _BYTES_PER_RECORD  # the records come first
    return None if size is None else max(1, size // each)
