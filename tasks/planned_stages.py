"""The stages of a run before it starts, in the order they run: what is done, and estimates of the
size and GPU time of what is left."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from data_contracts.configs import EvaluationConfig, PipelineConfig
from data_contracts.enums import LabelStatus, Stage
from data_contracts.sources import EvaluationSource
from tasks.benchmark_files import evaluation_label
from tasks.made_so_far import MadeSoFar
from tasks.models import profile_of
from tasks.plan import (
    CALIBRATION_FILES,
    CHECKPOINT_FILES,
    IMAGES_PER_SHARD,
    TABLE_FILES,
    status_statistic,
)
from tasks.planned_questions import Made, manifest_of, sources_of, total

_TRAIN_SECONDS = 0.38
"""One question, one epoch, LLaVA-1.5-7B on an A6000: 152k in 4 hours on 4 of them (the paper)."""
_FROZEN_SHARE = 0.6
"""Of that: the frozen layers, 15 forward against 3 forward and backward; calibration's trainings
compute them once and keep what comes out."""
_EXTRACT_SECONDS = 0.30
"""Prefill and a short answer on the same card; an estimate."""
_EVALUATE_SECONDS = 0.40
_SIZE_7B = 32 * 32 * 32
_ATTENTION_BYTES = 7_000
"""Two maps of 576 cells and text, compressed."""
_LABEL_BYTES = 500
"""A grid of labels and text, compressed; once in the labels and once in the label set."""
_ANSWER_BYTES = 2_000
"""One method's answer; about half of the methods keep a map."""


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
    """Of what is left; None if that is not known."""
    store_bytes: int
    """Of what is left, as far as it is known."""
    made: MadeSoFar

    @property
    def is_done(self) -> bool:
        """Whether a run would make nothing of it."""
        return self.made.is_done


@dataclass(frozen=True)
class _Work:
    """What a stage takes for each question."""

    seconds: float = 0.0
    """Of a GPU, on LLaVA-1.5-7B."""
    num_bytes: int = 0
    """Of the store."""
    num_steps: int | None = None
    """Of a stage that goes on from resume points rather than from receipts."""


_NO_WORK = _Work()


def planned_stages(
    config: PipelineConfig, numbers: Mapping[str, int | None], made: Made
) -> tuple[PlannedStage, ...]:
    """Every stage, in the order they run.

    Args:
        config: of the run.
        numbers: questions of each source, see ``num_questions``.
        made: what is in the store; what is missing here is still to be made.
    """
    return _Planner(config, numbers, made).stages()


class _Planner:
    """One run's stages."""

    def __init__(
        self, config: PipelineConfig, numbers: Mapping[str, int | None], made: Made
    ) -> None:
        self._config = config
        self._numbers = numbers
        self._made = made

    def stages(self) -> tuple[PlannedStage, ...]:
        number = total(self._numbers[source.name] for source in self._config.sources)
        return (
            *self._calibration(),
            *(stage for source in sources_of(self._config) for stage in self._questions(source)),
            *(stage for source in self._config.sources for stage in self._labels(source)),
            # One shard for each data set that the records turn out to name.
            self._stage(Stage.MERGE_LABELS, "", number, None, _Work(num_bytes=_LABEL_BYTES)),
            self._training(number),
            *self._evaluations(),
            self._stage(Stage.REPORT, "", number, 1),
        )

    def _calibration(self) -> list[PlannedStage]:
        """Where the profile needs it: every question is asked, then looked at in each training."""
        if profile_of(self._config.model).is_calibrated:
            return []
        settings = self._config.calibration
        number = settings.num_scenes * settings.questions_per_scene
        shares = _FROZEN_SHARE + (1 - _FROZEN_SHARE) * settings.branch_training.num_epochs
        seconds = _EXTRACT_SECONDS + settings.num_branch_candidates * shares * _TRAIN_SECONDS
        work = _Work(seconds, num_steps=settings.num_branch_candidates + 1)
        return [self._stage(Stage.CALIBRATE, "", number, len(CALIBRATION_FILES), work)]

    def _questions(self, source: EvaluationSource) -> list[PlannedStage]:
        rows = self._config.records.rows_per_shard
        return [
            self._sharded(Stage.DOWNLOAD, source, IMAGES_PER_SHARD),
            self._sharded(Stage.BUILD_JSONL, source, rows),
        ]

    def _labels(self, source: EvaluationSource) -> list[PlannedStage]:
        rows = self._config.extraction.rows_per_shard
        work = _Work(_EXTRACT_SECONDS, _ATTENTION_BYTES)
        return [
            self._sharded(Stage.EXTRACT_ATTENTION, source, rows, work),
            self._sharded(Stage.MAKE_LABELS, source, rows, _Work(num_bytes=_LABEL_BYTES)),
        ]

    def _training(self, number: int | None) -> PlannedStage:
        """Of the accepted labels where they are known, else of every question."""
        label_set = manifest_of(self._made, Stage.MERGE_LABELS, "")
        if label_set is not None:
            number = int(label_set.statistics.get(status_statistic(LabelStatus.OK), 0))
        settings = self._config.training
        num_steps = settings.num_epochs * math.ceil((number or 0) / settings.batch_size)
        work = _Work(settings.num_epochs * _TRAIN_SECONDS, num_steps=num_steps)
        return self._stage(Stage.TRAIN_RPN, "", number, len(CHECKPOINT_FILES), work)

    def _evaluations(self) -> list[PlannedStage]:
        """All methods, then SD-RPN alone once more with each further region threshold."""
        evaluation = self._config.evaluation
        if evaluation is None:
            return []
        sources = (evaluation.source, *evaluation.benchmarks)
        own = evaluation.region_threshold
        swept = [
            self._evaluation(source, evaluation, threshold, 1)
            for source in sources
            for threshold in sorted({*evaluation.threshold_sweep} - {own})
        ]
        number = len(evaluation.methods)
        at_its_own = [self._evaluation(source, evaluation, own, number) for source in sources]
        if not (evaluation.benchmarks or evaluation.threshold_sweep):
            return at_its_own
        number_of_all = total(self._numbers[source.name] for source in sources)
        table = self._stage(Stage.EVALUATE, "table", number_of_all, len(TABLE_FILES))
        return [*at_its_own, *swept, table]

    def _evaluation(
        self,
        source: EvaluationSource,
        settings: EvaluationConfig,
        threshold: float | None,
        num_methods: int,
    ) -> PlannedStage:
        """Answers and, made of them, results: done once both are."""
        label = evaluation_label(source.name, threshold)
        work = _Work(num_methods * _EVALUATE_SECONDS, num_methods * _ANSWER_BYTES)
        number = self._numbers[source.name]
        shards = _num_shards(number, settings.rows_per_shard)
        answers = self._stage(Stage.EVALUATE, label, number, shards, work)
        if manifest_of(self._made, Stage.EVALUATE, f"{label} results") is not None:
            return answers
        return replace(answers, made=replace(answers.made, manifest=None))

    def _sharded(
        self, kind: Stage, source: EvaluationSource, per_shard: int, work: _Work = _NO_WORK
    ) -> PlannedStage:
        number = self._numbers[source.name]
        return self._stage(kind, source.name, number, _num_shards(number, per_shard), work)

    def _stage(
        self,
        kind: Stage,
        source: str,
        number: int | None,
        num_shards: int | None,
        work: _Work = _NO_WORK,
    ) -> PlannedStage:
        """A stage as far as it is made, with the work that is left.

        Args:
            kind: which it is.
            source: which source it is for.
            number: questions, if known.
            num_shards: an estimate, for as long as the store does not say.
            work: for each question.
        """
        made = self._made.get((kind, source), MadeSoFar())
        left = _share_left(made, work)
        seconds = work.seconds * _relative_size(self._config)
        is_known = number is not None or not seconds or not left
        return PlannedStage(
            stage=kind,
            source=source,
            num_units=number,
            num_shards=num_shards if made.num_shards is None else made.num_shards,
            gpu_hours=(number or 0) * seconds * left / 3600 if is_known else None,
            store_bytes=round((number or 0) * work.num_bytes * left),
            made=made,
        )


def _share_left(made: MadeSoFar, work: _Work) -> float:
    """Of a stage's work, how much a run would still do."""
    if made.is_done:
        return 0.0
    if work.num_steps is not None:  # its files come all at once
        return 1 - min(1.0, (made.last_step or 0) / max(1, work.num_steps))
    return 1 - made.num_done / made.num_shards if made.num_shards else 1.0


def _num_shards(number: int | None, per_shard: int) -> int | None:
    return None if number is None else max(1, math.ceil(number / per_shard))


def _relative_size(config: PipelineConfig) -> float:
    """Work per question relative to LLaVA-1.5-7B, from layers and heads of 128."""
    profile = profile_of(config.model)
    return profile.num_layers * profile.num_heads**2 / _SIZE_7B
