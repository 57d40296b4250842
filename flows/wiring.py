"""The pipeline: which stage feeds which. The only place that says so.

Each method makes one stage's artifact, asking first for what it needs; how a stage is executed (in
this process, or as Prefect tasks) is the ``Execution``'s business.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import TypeVar

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import EvaluationConfig, ModelConfig, PipelineConfig
from data_contracts.enums import Method, Stage
from data_contracts.label_settings import LabelSettings
from data_contracts.settings_files import ConfigError
from data_contracts.sources import EvaluationSource, Source
from flows.execution import Execution
from tasks.anywhere import config_anywhere
from tasks.asked_kinds import require_heads
from tasks.benchmark_table import TableInputs, write_table
from tasks.build_jsonl import build_jsonl
from tasks.calibrate import calibrate_profile, calibrated
from tasks.download import download
from tasks.evaluate import (
    make_prediction_shard,
    predictions_recipe,
    require_askable,
    summarize_predictions,
)
from tasks.extract_attention import attention_recipe, make_attention_shard
from tasks.make_labels import make_labels
from tasks.merge_labels import merge_labels
from tasks.models import pinned, profile_of, require_usable_settings
from tasks.report import ReportInputs, write_report
from tasks.sources.benchmark_files import TABLE_LABEL, evaluation_label, settings_for
from tasks.train_rpn import train_rpn
from tasks.trained_images import warn_of_trained_images

S = TypeVar("S")

_OF_TRAINING = (Stage.EXTRACT_ATTENTION, Stage.MAKE_LABELS, Stage.MERGE_LABELS, Stage.TRAIN_RPN)
"""What these make needs nothing of the evaluation."""


def needs_model(stage: Stage) -> bool:
    """Whether a stage, or one before it, runs the model; calibration looks for it by itself."""
    return stage not in (Stage.CALIBRATE, Stage.DOWNLOAD, Stage.BUILD_JSONL)


class Pipeline:
    """The stages of one configuration; each runs at most once."""

    def __init__(
        self,
        config: PipelineConfig,
        execution: Execution,
        pin: Callable[[ModelConfig], ModelConfig] = pinned,
    ) -> None:
        """Prepare.

        Args:
            config: what to compute.
            execution: how to.
            pin: looks up the commit that the model is at.
        """
        self._config = config
        self._execution = execution
        self._pin = pin
        self._made: dict[tuple[Stage, str], ArtifactRef] = {}

    @cached_property
    def _pinned(self) -> ModelConfig:
        """The model at one commit for the whole run; looked up when a stage first needs it."""
        return self._pin(self._config.model)

    @cached_property
    def _model(self) -> ModelConfig:
        """The same, and calibrated: what all stages after the questions work with."""
        calibration = self.calibration()
        if calibration is None:
            return self._pinned
        store, kinds = self._execution.store, self._config.records.kinds
        return calibrated(store, self._pinned, calibration, kinds)

    @property
    def _label_settings(self) -> LabelSettings:
        return self._config.label_settings(profile_of(self._model))

    def sources(self, stage: Stage) -> tuple[EvaluationSource, ...]:
        """The sources that a stage needs, itself or before it.

        Raises:
            ConfigError: if the config does not have the stage.
        """
        if stage is Stage.CALIBRATE:
            return ()
        if stage is Stage.EVALUATE and self._config.evaluation is None:
            raise ConfigError(f"config {self._config.name!r} has no 'evaluation': add the section")
        if stage in _OF_TRAINING:
            return self._config.sources
        return (*self._config.sources, *(e.source for e in self.evaluations()))

    def make(self, stage: Stage) -> None:
        """Make every artifact of a stage.

        Raises:
            ConfigError: if the config does not have the stage.
            ModelError: before anything is fetched, if the model cannot be had.
            UncalibratedProfile: likewise, if calibration did not find what the questions need.
        """
        if needs_model(stage):
            # Hours of downloads would delay what is wrong with the model or the settings.
            require_usable_settings(self._config)
            _ = self._label_settings
        sources = self._config.sources
        match stage:
            case Stage.CALIBRATE:
                if self.calibration() is None:
                    name = profile_of(self._config.model).name
                    raise ConfigError(
                        f"profile {name!r} is calibrated: there is nothing to do; to calibrate its "
                        "model again use `sdrpn calibrate`"
                    )
            case Stage.DOWNLOAD:
                _each(self.files, self.sources(stage))
            case Stage.BUILD_JSONL:
                _each(self.questions, self.sources(stage))
            case Stage.EXTRACT_ATTENTION:
                _each(self.attention, sources)
            case Stage.MAKE_LABELS:
                _each(self.labels, sources)
            case Stage.MERGE_LABELS:
                self.label_set()
            case Stage.TRAIN_RPN:
                self.rpn()
            case Stage.EVALUATE | Stage.REPORT:
                # The benchmark's data comes first: a wrong address shows before hours of training.
                _each(self.questions, self.sources(stage))
                _each(self._require_heads, sources)
                _each(self._require_askable, self.evaluations())
                self._warn_of_trained_images()
                _each(self.results, self.evaluations())
                self.table()
                if stage is Stage.REPORT:
                    self.report()

    def artifacts(self) -> Iterator[Callable[[], object]]:
        """What makes each artifact of a whole run, or stops it, in the order of the run."""
        sources = self._config.sources
        yield partial(require_usable_settings, self._config)
        yield self.calibration
        for source in self.sources(Stage.REPORT):
            yield partial(self.files, source)
            yield partial(self.questions, source)
        yield from (partial(self._require_heads, source) for source in sources)
        for benchmark in self.evaluations():
            yield partial(self._require_askable, benchmark)
        yield self._warn_of_trained_images
        for trained_on in sources:
            yield partial(self.attention, trained_on)
            yield partial(self.labels, trained_on)
        yield from (self.label_set, self.rpn)
        swept = (benchmark for _, _, benchmark in self.sweep())
        for benchmark in (*self.evaluations(), *swept):
            yield partial(self.predictions, benchmark)
            yield partial(self.results, benchmark)
        yield from (self.table, self.report)

    def is_made(self, stage: Stage) -> bool:
        """Whether this run got as far."""
        return any(made is stage for made, _ in self._made)

    def calibration(self) -> ArtifactRef | None:
        """What the model's profile does not say, found on scenes; None if it says everything."""
        if profile_of(self._config.model).is_calibrated:
            return None
        return self._once(
            (Stage.CALIBRATE, ""),
            lambda: self._execution.whole(
                Stage.CALIBRATE, calibrate_profile, self._pinned, self._config.calibration
            ),
        )

    def files(self, source: EvaluationSource) -> ArtifactRef:
        """The downloaded files of a source."""
        return self._once(
            (Stage.DOWNLOAD, source.name),
            lambda: self._execution.whole(Stage.DOWNLOAD, download, source, label=source.name),
        )

    def questions(self, source: EvaluationSource) -> ArtifactRef:
        """The questions of a source; a benchmark's are never cut to a subset."""
        settings = self._config.records
        if source not in self._config.sources:
            settings = settings.model_copy(update={"max_records": None})
        return self._once(
            (Stage.BUILD_JSONL, source.name),
            lambda: self._execution.whole(
                Stage.BUILD_JSONL,
                build_jsonl,
                self.files(source),
                source,
                settings,
                label=source.name,
            ),
        )

    def attention(self, source: Source) -> ArtifactRef:
        """What the model's answers to a source's questions attend to."""
        model = self._model  # before the source is fetched
        return self._once(
            (Stage.EXTRACT_ATTENTION, source.name),
            lambda: self._execution.sharded(
                Stage.EXTRACT_ATTENTION,
                attention_recipe,
                make_attention_shard,
                self.questions(source),
                model,
                self._config.extraction,
                label=source.name,
            ),
        )

    def labels(self, source: Source) -> ArtifactRef:
        """Pseudo-labels of a source."""
        settings = self._label_settings  # before anything is extracted
        return self._once(
            (Stage.MAKE_LABELS, source.name),
            lambda: self._execution.whole(
                Stage.MAKE_LABELS,
                make_labels,
                self.attention(source),
                settings,
                label=source.name,
            ),
        )

    def label_set(self) -> ArtifactRef:
        """The labels of all sources."""
        labels = [self.labels(source) for source in self._config.sources]
        return self._once(
            (Stage.MERGE_LABELS, ""),
            lambda: self._execution.whole(Stage.MERGE_LABELS, merge_labels, labels),
        )

    def rpn(self) -> ArtifactRef:
        """The trained region proposal network."""
        return self._once(
            (Stage.TRAIN_RPN, ""),
            lambda: self._execution.whole(
                Stage.TRAIN_RPN,
                train_rpn,
                self.label_set(),
                self._model,
                self._config.training_settings(profile_of(self._model)),
                self._config.region_settings(profile_of(self._model)),
            ),
        )

    def evaluations(self) -> tuple[EvaluationConfig, ...]:
        """The held-out questions, then every public benchmark, each with its own rules; none where
        the config has no evaluation."""
        evaluation = self._config.evaluation
        if evaluation is None:
            return ()
        sources = (evaluation.source, *evaluation.benchmarks)
        return tuple(settings_for(evaluation, source) for source in sources)

    def _require_heads(self, source: Source) -> None:
        """That a later source cannot be extracted shows before the first one is."""
        questions = self.questions(source)
        require_heads(self._execution.store, questions, profile_of(self._model))

    def _require_askable(self, benchmark: EvaluationConfig) -> None:
        """That nothing says what is right, or where to look, shows before training, too."""
        questions = self.questions(benchmark.source)
        require_askable(self._execution.store, questions, profile_of(self._model), benchmark)

    def _warn_of_trained_images(self) -> None:
        """That figures would not be of new images shows before training, too."""
        if evaluations := self.evaluations():
            warn_of_trained_images(
                self._execution.store,
                {one.source.name: self.questions(one.source) for one in evaluations},
                {source.name: self.questions(source) for source in self._config.sources},
            )

    def predictions(self, benchmark: EvaluationConfig) -> ArtifactRef:
        """Every way's answers to a benchmark."""
        return self._once(
            (Stage.EVALUATE, _label(benchmark)),
            lambda: self._execution.sharded(
                Stage.EVALUATE,
                predictions_recipe,
                make_prediction_shard,
                self.questions(benchmark.source),
                self.files(benchmark.source),
                self.rpn(),
                self._model,
                benchmark,
                label=_label(benchmark),
            ),
        )

    def results(self, benchmark: EvaluationConfig) -> ArtifactRef:
        """The results table of a benchmark."""
        label = f"{_label(benchmark)} results"
        return self._once(
            (Stage.EVALUATE, label),
            lambda: self._execution.whole(
                Stage.EVALUATE,
                summarize_predictions,
                self.predictions(benchmark),
                benchmark,
                self._label_settings,
                label=label,
            ),
        )

    def sweep(self) -> tuple[tuple[str, float, EvaluationConfig], ...]:
        """Every benchmark again with every further region threshold: (name, threshold, settings).

        Only SD-RPN answers; the others do not depend on it.
        """
        return tuple(
            (
                benchmark.source.name,
                threshold,
                benchmark.model_copy(
                    update={"methods": (Method.SDRPN,), "region_threshold": threshold}
                ),
            )
            for benchmark in self.evaluations()
            for threshold in sorted(set(benchmark.threshold_sweep))
        )

    def table(self) -> ArtifactRef | None:
        """All benchmarks side by side; None where there is but one thing to show."""
        evaluation = self._config.evaluation
        if evaluation is None or not (evaluation.benchmarks or evaluation.threshold_sweep):
            return None
        inputs = TableInputs(
            rpn=self.rpn(),
            results=tuple((e.source.name, self.results(e)) for e in self.evaluations()),
            sweep=tuple((name, value, self.results(e)) for name, value, e in self.sweep()),
        )
        model = profile_of(self._config.model).name
        return self._once(
            (Stage.EVALUATE, TABLE_LABEL),
            lambda: self._execution.whole(
                Stage.EVALUATE, write_table, inputs, model, evaluation, label=TABLE_LABEL
            ),
        )

    def report(self) -> ArtifactRef:
        """The HTML page; without the benchmark's part where the config has none."""
        sources = self._config.sources
        evaluations = self.evaluations()
        inputs = ReportInputs(
            files=tuple(self.files(source) for source in sources),
            questions=tuple(self.questions(source) for source in sources),
            attention=tuple(self.attention(source) for source in sources),
            labels=tuple(self.labels(source) for source in sources),
            label_set=self.label_set(),
            rpn=self.rpn(),
            calibration=self.calibration(),
            predictions=self.predictions(evaluations[0]) if evaluations else None,
            results=self.results(evaluations[0]) if evaluations else None,
        )
        # It shows the configuration, which Prefect knows with absolute paths only.
        shown = config_anywhere(self._config)
        return self._once(
            (Stage.REPORT, ""),
            lambda: self._execution.whole(
                Stage.REPORT, write_report, inputs, shown, self._label_settings
            ),
        )

    def _once(self, key: tuple[Stage, str], make: Callable[[], ArtifactRef]) -> ArtifactRef:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _label(benchmark: EvaluationConfig) -> str:
    return evaluation_label(benchmark.source.name, benchmark.region_threshold)


def _each(make: Callable[[S], object], arguments: Iterable[S]) -> None:
    for argument in arguments:
        make(argument)
