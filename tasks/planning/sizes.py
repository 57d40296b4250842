"""How much a run's artifacts take in the store, before they are made.

What a file or a model's configuration says is taken from there. The constants are measured on the
store that a run of the reference configuration leaves.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import assert_never

from data_contracts.configs import PipelineConfig
from data_contracts.enums import Method
from data_contracts.sources import (
    BenchmarkSource,
    EvaluationSource,
    ImageArchive,
    ImageFolder,
    LlavaMixSource,
    ParquetSource,
    SceneSource,
    VisualCotSource,
    remote_file,
)
from sdrpn_core.benchmarks.tasks import TASKS
from sdrpn_core.models.dimensions import model_dimensions
from sdrpn_core.rpn.size import num_rpn_parameters
from tasks.artifacts.checkpoints import NUM_KEPT
from tasks.models import profile_of
from tasks.planning.files import PlannedFile

ARTIFACT_BYTES = 2_500
"""Recipe and manifest."""
SHARD_BYTES = 800
"""A receipt, and its copy in the manifest."""
TABLE_SHARD_BYTES = 7_000
"""What Parquet adds to the rows of a shard."""
QUESTION_BYTES = 450
"""A row of questions."""
RESULTS_BYTES = 20_000
"""Results, speed and the empty table of documents of an evaluation."""
DOCUMENT_BYTES = 200
"""A row of an evaluation's documents."""
ALL_RESULTS_BYTES = 25_000
"""The table of all benchmarks, in every format."""
CALIBRATION_BYTES = 250_000
"""A calibrated profile, its evidence and pictures, and its resume points."""

_SCENE_BYTES = 69_000
"""A picture."""
_SCENE_TEXT_BYTES = 950
"""Its conversation and true boxes."""
_FILES_TABLE_BYTES = 5_000
"""The table of files without its rows."""
_IMAGE_ROW_BYTES = 100
_BENCHMARK_TEXT_BYTES = 700
"""Record and document of a benchmark's row."""
_PARQUET_TEXT_BYTES = 350
_FLOAT_BYTES = 4
_TEXT_BYTES = 550
"""Question, answers and ids of a row of attention."""
_ANSWER_BYTES = 150
"""One method's answer, without its map."""
_WITHOUT_MAP = {Method.BASE, Method.RANDOM_CROP, Method.ORACLE}
_METRICS_BYTES = 170
"""A step in the training log."""
_CARD_BYTES = 11_000
"""Configuration and model card."""
_PAGE_BYTES = 100_000
"""The report without pictures."""
_PICTURE_BYTES = 64_000


def downloaded_bytes(
    source: EvaluationSource, files: Sequence[PlannedFile], number: int | None
) -> int:
    """Of a source's download, without archives and folders of images that are copied.

    Args:
        source: which it is.
        files: those it consists of; a mix's records come first.
        number: its images if they were counted, else its questions, if known.
    """
    known = sum(file.num_bytes or 0 for file in files if not _is_archive(source, file))
    rows = _FILES_TABLE_BYTES + (number or 0) * _IMAGE_ROW_BYTES
    match source:
        case SceneSource():
            return source.num_images * (_SCENE_BYTES + _SCENE_TEXT_BYTES + _IMAGE_ROW_BYTES)
        case BenchmarkSource():
            published = TASKS[source.task].num_documents
            share = min(1.0, (source.max_documents or published) / published)
            return round(known * share) + rows + (number or 0) * _BENCHMARK_TEXT_BYTES
        case ParquetSource():
            images = known if source.copy_images else 0
            return images + rows + (number or 0) * _PARQUET_TEXT_BYTES
        case LlavaMixSource() | VisualCotSource():
            return known + rows
        case _:
            assert_never(source)


def copies_folders(source: EvaluationSource) -> bool:
    """Whether a source's download also holds images that no figure counts."""
    if not isinstance(source, LlavaMixSource | VisualCotSource) or not source.copy_images:
        return False
    return any(isinstance(place, ImageFolder) for place in source.image_places)


class RowBytes:
    """What one question takes in the artifacts that depend on the model's grid."""

    def __init__(self, config: PipelineConfig) -> None:
        """Look up the model's dimensions."""
        self._config = config
        self._profile = profile_of(config.model)
        self._model = model_dimensions(self._profile)

    @property
    def attention(self) -> int:
        """Grounding, the prompt's own attention and, where the profile has a rule, sinks."""
        heads = self._profile.heads.values()
        num_maps = 2 if heads and all(kind.sink is None for kind in heads) else 3
        return _TEXT_BYTES + num_maps * self._map_bytes

    @property
    def labels(self) -> int:
        """A grid of small whole numbers, compressed."""
        return 90 + self._map_bytes // 12

    @property
    def merged_labels(self) -> int:
        """The same sorted by data set, in larger shards."""
        return 50 + self._map_bytes // 16

    def answers(self, methods: Sequence[Method]) -> int:
        """Of every method, and the map of those that have one."""
        num_maps = sum(method not in _WITHOUT_MAP for method in methods)
        return len(methods) * _ANSWER_BYTES + num_maps * self._map_bytes

    def rpn(self, num_steps: int) -> int:
        """A trained RPN, its configuration and its training log."""
        each = _FLOAT_BYTES if self._config.model.dtype == "float32" else _FLOAT_BYTES // 2
        return self._num_parameters * each + num_steps * _METRICS_BYTES + _CARD_BYTES

    def resume_points(self, last_step: int, num_steps: int) -> int:
        """Those that training from one step to another adds: float32 weights and two moments."""
        every = self._config.training_settings(self._profile).checkpoint_every
        already, at_the_end = (min(NUM_KEPT, step // every) for step in (last_step, num_steps))
        each = 3 * self._num_parameters * _FLOAT_BYTES + num_steps * _METRICS_BYTES
        return max(0, at_the_end - already) * each

    @property
    def _map_bytes(self) -> int:
        return self._model.num_cells * _FLOAT_BYTES

    @cached_property
    def _num_parameters(self) -> int:
        return num_rpn_parameters(self._model.text, self._profile.rpn)


def report_bytes(config: PipelineConfig, num_labelled: int | None, num_answered: int | None) -> int:
    """The page with its pictures.

    Args:
        config: says how many pictures it has at most of labels, and as many of answers.
        num_labelled: questions that labels are made for; None if that is not known.
        num_answered: questions of the evaluation; 0 without one.
    """
    most = config.report.num_gallery
    shown = sum(most if n is None else min(most, n) for n in (num_labelled, num_answered))
    return _PAGE_BYTES + shown * _PICTURE_BYTES


def _is_archive(source: EvaluationSource, file: PlannedFile) -> bool:
    """Whether a file holds images of a mix: it is copied whole, or not at all."""
    if not isinstance(source, LlavaMixSource | VisualCotSource):
        return False
    places = source.image_places
    archives = (place for place in places if isinstance(place, ImageArchive))
    return file.uri in {remote_file(archive.file).uri for archive in archives}
