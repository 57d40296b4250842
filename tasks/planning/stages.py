"""The stages of a run before it starts, in the order they run: what is done, and estimates of the
size and GPU time of what is left."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_contracts.configs import EvaluationConfig, PipelineConfig
from data_contracts.enums import LabelStatus, Method, Stage
from data_contracts.sources import BenchmarkSource, EvaluationSource
from sdrpn_core.models.dimensions import model_dimensions
from tasks.models import profile_of
from tasks.planning.files import PlannedFile
from tasks.planning.made_so_far import MadeSoFar
from tasks.planning.questions import (
    Certainty,
    Made,
    NumQuestions,
    manifest_of,
    sources_of,
    total,
)
from tasks.planning.sizes import (
    ALL_RESULTS_BYTES,
    ARTIFACT_BYTES,
    CALIBRATION_BYTES,
    DOCUMENT_BYTES,
    QUESTION_BYTES,
    RESULTS_BYTES,
    SHARD_BYTES,
    TABLE_SHARD_BYTES,
    RowBytes,
    downloaded_bytes,
    report_bytes,
)
from tasks.recipes import CALIBRATION_FILES, CHECKPOINT_FILES, IMAGES_PER_SHARD, TABLE_FILES
from tasks.shard_statistics import status_statistic
from tasks.sources.benchmark_files import TABLE_LABEL, evaluation_label

_TRAIN_SECONDS = 0.38
"""One question, one epoch, LLaVA-1.5-7B on an A6000: 152k in 4 hours on 4 of them (the paper)."""
_FROZEN_SHARE = 0.6
"""Of that: the frozen layers, 15 forward against 3 forward and backward; calibration's trainings
compute them once and keep what comes out."""
_EXTRACT_SECONDS = 0.30
"""Prefill and a short answer on the same card; an estimate."""
_EVALUATE_SECONDS = 0.40
_SIZE_7B = 32 * 4096**2


@dataclass(frozen=True)
class PlannedStage:
    """One stage for one source."""

    stage: Stage
    source: str
    num_units: int | None
    """Questions; None where not even their source's size is known."""
    certainty: Certainty
    """Of the number of questions."""
    num_shards: int | None
    gpu_hours: float | None
    """Of what is left; None if that is not known."""
    store_bytes: int
    """Of what is left, as far as it is known; archives and folders of images not counted."""
    made: MadeSoFar
    num_steps: int | None = None
    """About how many a stage has that goes on from resume points; None of other stages."""

    @property
    def is_done(self) -> bool:
        """Whether a run would make nothing of it."""
        return self.made.is_done


@dataclass(frozen=True)
class _Work:
    """What a stage takes."""

    seconds: float = 0.0
    """Of a GPU for each question, on LLaVA-1.5-7B."""
    row_bytes: int = 0
    """Of the store for each question."""
    whole_bytes: int = 0
    """Of the store however many questions there are."""
    num_steps: int | None = None
    """Of a stage that goes on from resume points rather than from receipts."""
    share_with_weights: float = 1.0
    """Of the work, what is left of an RPN that was trained for other regions: validation."""


def planned_stages(
    config: PipelineConfig,
    by_source: Mapping[str, Sequence[PlannedFile]],
    numbers: Mapping[str, NumQuestions],
    made: Made,
) -> tuple[PlannedStage, ...]:
    """Every stage, in the order they run.

    Args:
        config: of the run.
        by_source: files of each source.
        numbers: questions of each source, see ``num_questions``.
        made: what is in the store; what is missing here is still to be made.
    """
    return _Planner(config, by_source, numbers, made).stages()


class _Planner:
    """One run's stages."""

    def __init__(
        self,
        config: PipelineConfig,
        by_source: Mapping[str, Sequence[PlannedFile]],
        numbers: Mapping[str, NumQuestions],
        made: Made,
    ) -> None:
        self._config = config
        self._by_source = by_source
        self._rows = RowBytes(config)
        self._relative_size = _relative_size(config)
        self._numbers = numbers
        self._made = made

    def stages(self) -> tuple[PlannedStage, ...]:
        number = total(self._numbers[source.name] for source in self._config.sources)
        return (
            *self._calibration(),
            *(stage for source in sources_of(self._config) for stage in self._questions(source)),
            *(stage for source in self._config.sources for stage in self._labels(source)),
            # One shard for each data set that the records turn out to name.
            self._stage(
                Stage.MERGE_LABELS, "", number, None, _Work(row_bytes=self._rows.merged_labels)
            ),
            self._training(number),
            *self._evaluations(),
            self._report(number),
        )

    def _calibration(self) -> list[PlannedStage]:
        """Where the profile needs it: every question is asked, then looked at in each training."""
        if profile_of(self._config.model).is_calibrated:
            return []
        settings = self._config.calibration
        most = settings.num_scenes * settings.questions_per_scene
        number = NumQuestions(most, Certainty.ABOUT)
        shares = _FROZEN_SHARE + (1 - _FROZEN_SHARE) * settings.branch_training.num_epochs
        seconds = _EXTRACT_SECONDS + settings.num_branch_candidates * shares * _TRAIN_SECONDS
        num_steps = settings.num_branch_candidates + 1
        work = _Work(seconds, whole_bytes=CALIBRATION_BYTES, num_steps=num_steps)
        return [self._stage(Stage.CALIBRATE, "", number, len(CALIBRATION_FILES), work)]

    def _questions(self, source: EvaluationSource) -> list[PlannedStage]:
        settings = self._config.records
        files = _Work(whole_bytes=self._downloaded_bytes(source))
        number = self._numbers[source.name]
        of_images = _num_shards(number.most_images, IMAGES_PER_SHARD)
        shards = None if of_images is None else 1 + of_images
        # By records, however many questions each has.
        num_rows = number.most_records
        if num_rows and settings.max_records and source in self._config.sources:
            num_rows = min(num_rows, settings.max_records)
        of_rows = _num_shards(num_rows, settings.rows_per_shard)
        rows = _Work(row_bytes=QUESTION_BYTES)
        return [
            self._stage(Stage.DOWNLOAD, source.name, number, shards, files),
            self._stage(Stage.BUILD_JSONL, source.name, number, of_rows, rows),
        ]

    def _downloaded_bytes(self, source: EvaluationSource) -> int:
        """None for a source that has the same download as an earlier one."""
        alike = [other for other in sources_of(self._config) if _has_same_files(other, source)]
        if alike[0] is not source:
            return 0
        number = self._numbers[source.name].most_images
        return downloaded_bytes(source, self._by_source[source.name], number)

    def _labels(self, source: EvaluationSource) -> list[PlannedStage]:
        rows = self._config.extraction.rows_per_shard
        work = _Work(_EXTRACT_SECONDS, self._rows.attention)
        labels = _Work(row_bytes=self._rows.labels)
        return [
            self._sharded(Stage.EXTRACT_ATTENTION, source, rows, work),
            self._sharded(Stage.MAKE_LABELS, source, rows, labels),
        ]

    def _training(self, number: NumQuestions) -> PlannedStage:
        """Of the accepted labels where they are known, else of every question."""
        label_set = manifest_of(self._made, Stage.MERGE_LABELS, "")
        if label_set is not None:
            accepted = int(label_set.statistics.get(status_statistic(LabelStatus.OK), 0))
            number = NumQuestions(accepted, Certainty.COUNTED)
        elif number.certainty is Certainty.COUNTED:
            number = NumQuestions(number.number, Certainty.ABOUT)
        settings = self._config.training_settings(profile_of(self._config.model))
        num_labelled = number.number or 0
        num_steps = settings.about_num_steps(num_labelled)
        validated = settings.num_held_out(num_labelled) / max(num_labelled, 1)
        made = self._made.get((Stage.TRAIN_RPN, ""), MadeSoFar())
        last_step = num_steps if made.has_weights else made.last_step or 0
        work = _Work(
            settings.num_epochs * _TRAIN_SECONDS,
            whole_bytes=self._rows.rpn(num_steps) + self._rows.resume_points(last_step, num_steps),
            num_steps=num_steps,
            share_with_weights=validated * _FROZEN_SHARE / settings.num_epochs,
        )
        return self._stage(Stage.TRAIN_RPN, "", number, len(CHECKPOINT_FILES), work)

    def _evaluations(self) -> list[PlannedStage]:
        """All methods, then SD-RPN alone once more with each further region threshold."""
        evaluation = self._config.evaluation
        if evaluation is None:
            return []
        sources = (evaluation.source, *evaluation.benchmarks)
        own = evaluation.region_threshold
        swept = [
            self._evaluation(source, evaluation, threshold, (Method.SDRPN,))
            for source in sources
            for threshold in sorted({*evaluation.threshold_sweep} - {own})
        ]
        methods = evaluation.methods
        at_its_own = [self._evaluation(source, evaluation, own, methods) for source in sources]
        if not (evaluation.benchmarks or evaluation.threshold_sweep):
            return at_its_own
        number_of_all = total(self._numbers[source.name] for source in sources)
        files = _Work(whole_bytes=ALL_RESULTS_BYTES)
        table = self._stage(Stage.EVALUATE, TABLE_LABEL, number_of_all, len(TABLE_FILES), files)
        return [*at_its_own, *swept, table]

    def _report(self, number: NumQuestions) -> PlannedStage:
        evaluation = self._config.evaluation
        answered = 0 if evaluation is None else self._numbers[evaluation.source.name].number
        work = _Work(whole_bytes=report_bytes(self._config, number.number, answered))
        return self._stage(Stage.REPORT, "", number, 1, work)

    def _evaluation(
        self,
        source: EvaluationSource,
        settings: EvaluationConfig,
        threshold: float | None,
        methods: Sequence[Method],
    ) -> PlannedStage:
        """Answers and, made of them, results: done once both are."""
        label = evaluation_label(source.name, threshold)
        work = _Work(len(methods) * _EVALUATE_SECONDS, self._rows.answers(methods))
        number = self._numbers[source.name]
        shards = _num_shards(number.number, settings.rows_per_shard)
        answers = self._stage(Stage.EVALUATE, label, number, shards, work)
        if manifest_of(self._made, Stage.EVALUATE, f"{label} results") is not None:
            return answers
        results = RESULTS_BYTES + (number.number or 0) * DOCUMENT_BYTES
        return replace(
            answers,
            made=replace(answers.made, manifest=None),
            store_bytes=answers.store_bytes + results,
        )

    def _sharded(
        self, kind: Stage, source: EvaluationSource, per_shard: int, work: _Work
    ) -> PlannedStage:
        number = self._numbers[source.name]
        return self._stage(kind, source.name, number, _num_shards(number.number, per_shard), work)

    def _stage(
        self,
        kind: Stage,
        source: str,
        number: NumQuestions,
        num_shards: int | None,
        work: _Work,
    ) -> PlannedStage:
        """A stage as far as it is made, with the work that is left.

        Args:
            kind: which it is.
            source: which source it is for.
            number: questions.
            num_shards: an estimate, for as long as the store does not say.
            work: for each question.
        """
        made = self._made.get((kind, source), MadeSoFar())
        left = _share_left(made, work)
        seconds = work.seconds * self._relative_size
        is_known = number.number is not None or not seconds or not left
        num_shards = num_shards if made.num_shards is None else made.num_shards
        is_table = work.row_bytes and kind is not Stage.BUILD_JSONL
        shard_bytes = SHARD_BYTES + (TABLE_SHARD_BYTES if is_table else 0)
        num_questions = number.number or 0
        num_bytes = num_questions * work.row_bytes + work.whole_bytes
        return PlannedStage(
            stage=kind,
            source=source,
            num_units=number.number,
            certainty=number.certainty,
            num_shards=num_shards,
            gpu_hours=num_questions * seconds * left / 3600 if is_known else None,
            store_bytes=_bytes_left(made, work, num_bytes + (num_shards or 1) * shard_bytes),
            made=made,
            num_steps=work.num_steps,
        )


def _bytes_left(made: MadeSoFar, work: _Work, num_bytes: int) -> int:
    """Of an artifact of so many bytes, what is still to be stored."""
    if made.is_done:
        return 0
    all_at_once = work.num_steps is not None
    left = 1.0 if all_at_once else _share_left(made, work)
    return ARTIFACT_BYTES + round(left * num_bytes)


def _share_left(made: MadeSoFar, work: _Work) -> float:
    """Of a stage's work, how much a run would still do."""
    if made.is_done:
        return 0.0
    if made.has_weights:
        return work.share_with_weights
    if work.num_steps is not None:  # its files come all at once
        return 1 - min(1.0, (made.last_step or 0) / max(1, work.num_steps))
    return 1 - made.num_done / made.num_shards if made.num_shards else 1.0


def _num_shards(number: int | None, per_shard: int) -> int | None:
    return None if number is None else max(1, math.ceil(number / per_shard))


def _relative_size(config: PipelineConfig) -> float:
    """Work per question relative to LLaVA-1.5-7B, from the layers and their width."""
    text = model_dimensions(profile_of(config.model)).text
    return float(text.num_hidden_layers * text.hidden_size**2 / _SIZE_7B)


def _has_same_files(one: EvaluationSource, other: EvaluationSource) -> bool:
    """Whether two sources have one download: what they are called, and which part of the images
    they take, is no matter of it."""
    return _files_of(one) == _files_of(other)


def _files_of(source: EvaluationSource) -> dict[str, Any]:
    folders = None if isinstance(source, BenchmarkSource) else source.selection.folders
    without = {"name", "selection", "expected_records"}
    return {**source.model_dump(exclude=without), "folders": folders}
