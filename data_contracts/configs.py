"""What a run computes (``PipelineConfig``): all that its artifacts' identities are made of.

Defaults live beside the keys and nowhere else. How a run is executed is ``runtime``.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from data_contracts.base import Changes, S, Settings
from data_contracts.calibration import CalibrationSettings
from data_contracts.enums import DEFAULT_METHODS, Method, QuestionKind
from data_contracts.label_settings import (
    LabelChanges,
    LabelSettings,
    RegionChanges,
    RegionSettings,
)
from data_contracts.profiles import ModelProfile
from data_contracts.settings_files import ConfigError, load_settings
from data_contracts.sources import BenchmarkSource, EvaluationSource, Source
from data_contracts.training import TrainingChanges, TrainingConfig
from data_contracts.wrong_settings import WrongSetting

Precision = Literal["float32", "bfloat16", "float16"]
"""What models run in; names of torch dtypes."""


def _form_of_profile(value: object) -> str:
    return "written_out" if isinstance(value, dict | ModelProfile) else "name"


class ModelConfig(Settings):
    """The frozen multimodal LLM."""

    profile: Annotated[
        Annotated[str, Tag("name")] | Annotated[ModelProfile, Tag("written_out")],
        Discriminator(_form_of_profile),
    ] = "reference"
    """Name of a packaged profile, path of a profile file (YAML or JSON), or the profile itself.
    One without heads is calibrated first, see ``calibration``."""
    revision: str | None = None
    """Branch, tag or commit of the hub's repository instead of the profile's. Whatever is named, a
    run looks up its commit once, works with that, and records it."""
    dtype: Precision = "float32"

    def __hash__(self) -> int:
        """Hash of name, revision and dtype: a profile that is written out holds dicts."""
        name = self.profile if isinstance(self.profile, str) else self.profile.name
        return hash((name, self.revision, self.dtype))


class RecordsConfig(Settings):
    """How source records become questions."""

    turns: Literal["first", "all"] = "first"
    datasets: dict[str, QuestionKind] = {
        "gqa": QuestionKind.NATURAL,
        "coco": QuestionKind.NATURAL,
        "vg": QuestionKind.NATURAL,
        "ocr_vqa": QuestionKind.TEXTUAL,
        "textvqa": QuestionKind.TEXTUAL,
    }
    """First folder of a record's image path -> kind of its questions."""
    default_kind: QuestionKind = QuestionKind.NATURAL
    max_records: int | None = Field(None, gt=0)
    """Number of questions in a fixed-seed subset that is drawn by question id; None keeps all."""
    rows_per_shard: int = Field(2048, gt=0)
    max_failure_rate: float = Field(0.25, ge=0, le=1)
    """A source with a larger share of malformed records, missing and unreadable images stops the
    run."""
    tolerated_failures: int = Field(3, ge=0)
    """This many failures never stop the run, whatever their share: with few questions, one failure
    would exceed the rate."""

    @property
    def kinds(self) -> frozenset[QuestionKind]:
        """Kinds that questions may be of."""
        return frozenset((self.default_kind, *self.datasets.values()))


class ExtractionConfig(Settings):
    """Attention extraction."""

    responses: Literal["generated", "dataset"] = "generated"
    """Whose answers are looked at: the model's own, or those that the data set gives. The latter
    need no generation: all turns of a conversation (see ``records.turns``) take one pass."""
    max_new_tokens: int = Field(128, gt=0)
    """Longest generated response, in tokens; a longer one counts as overlong and gives no label."""
    max_conversation_tokens: int = Field(2048, gt=0)
    """Longest conversation whose responses the data set gives, in tokens; turns that end beyond it
    count as overlong and give no label."""
    rows_per_shard: int = Field(256, gt=0)
    max_failure_rate: float = Field(0.05, ge=0, le=1)
    """A shard with a larger share of images that have become unreadable since they were fetched
    fails."""
    tolerated_failures: int = Field(3, ge=0)
    """This many failures never fail a shard, whatever their share: in a small shard, one failure
    would exceed the rate."""


RuleName = Literal[
    "scenes",
    "textvqa",
    "docvqa",
    "infovqa",
    "chartqa",
    "ocrbench",
    "vstar_bench",
    "pope",
    "hrbench",
]
"""Scoring rules that ``sdrpn_core.benchmarks`` knows."""
_NOT_FOR_OWN_QUESTIONS: Mapping[str, str] = {
    "textvqa": "the answers of ten annotators",
    "vstar_bench": "lettered options",
    "hrbench": "lettered options",
    "pope": "yes or no in a column of its own",
}
"""Rules that judge by more than the one reference answer that a source of one's own gives."""


PaperModel = Literal[
    "llava-1.5-7b",
    "llava-1.5-13b",
    "deepseek-vl-1.3b",
    "deepseek-vl-7b",
    "qwen2.5-vl-3b",
    "qwen2.5-vl-7b",
]
"""Profiles of the models whose figures the paper gives."""


class EvaluationConfig(Settings):
    """Benchmark evaluation."""

    source: EvaluationSource
    """Held-out questions; ones with true boxes also give RoI quality and the oracle."""
    benchmarks: tuple[BenchmarkSource, ...] = ()
    """Public benchmarks, each asked and scored by its own rules; further results tables."""
    benchmark: RuleName = "scenes"
    """Scoring rule of ``source``: name of a benchmark, of those that judge by one reference answer;
    ``scenes`` asks for that answer. Public benchmarks have their own."""
    methods: tuple[Method, ...] = Field(DEFAULT_METHODS, min_length=1)
    max_new_tokens: int = Field(32, gt=0)
    crop_padding_ratio: float = Field(0.1, ge=0)
    """Margin added to each side of the oracle's box, as a share of the box's side."""
    raw_attention_threshold: float = Field(0.5, gt=0, lt=1)
    """Region threshold of the raw-attention baseline, as a share of the map's maximum."""
    region_threshold: float | None = Field(None, gt=0, lt=1)
    """Region threshold of SD-RPN; None takes the one that the RPN was trained with."""
    crop_tokens: int | None = Field(None, ge=1)
    """Most tokens of every method's crops; None takes what the RPN was made for."""
    threshold_sweep: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Further region thresholds to answer everything with, to see how much the choice matters."""
    paper_model: PaperModel | None = None
    """Profile of the model whose published figures stand beside ours; None takes this model's."""
    num_bootstrap: int = Field(1000, ge=20)
    """Resamples behind the intervals; of fewer than 20, 95 % are all."""
    rows_per_shard: int = Field(128, gt=0)
    seed: int = Field(0, ge=0)
    """Of the resampling behind the intervals."""

    @field_validator("benchmark")
    @classmethod
    def _rule_fits_the_source(cls, rule: RuleName, info: ValidationInfo) -> RuleName:
        needed = _NOT_FOR_OWN_QUESTIONS.get(rule)
        source = info.data.get("source")  # missing if it is wrong itself
        if needed is None or source is None or isinstance(source, BenchmarkSource):
            return rule
        fitting = [name for name in get_args(RuleName) if name not in _NOT_FOR_OWN_QUESTIONS]
        raise ValueError(
            f"{rule} judges by {needed}, which source {source.name!r} does not give; choose one of "
            f"{', '.join(fitting)}, or add the public benchmark to evaluation.benchmarks"
        )

    @field_validator("methods")
    @classmethod
    def _methods_differ(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        if twice := [name for name, count in Counter(methods).items() if count > 1]:
            raise ValueError(f"each method once; {', '.join(twice)} is there more than once")
        return methods

    def threshold_beside(self, own: float) -> float:
        """Region threshold that SD-RPN answers with, beside an RPN with one of its own."""
        return own if self.region_threshold is None else self.region_threshold


class ReportConfig(Settings):
    """The HTML report."""

    num_gallery: int = Field(12, ge=0)


class PipelineConfig(Settings):
    """Everything that determines a run's results."""

    name: str = Field(pattern=r"^[a-z0-9._-]*[a-z0-9_-][a-z0-9._-]*$")
    """Small letters, digits and ``._-``; not dots alone, as it names a folder of promotions."""
    sources: tuple[Source, ...] = Field(min_length=1)
    model: ModelConfig = ModelConfig()
    calibration: CalibrationSettings = CalibrationSettings()
    """How heads are found if the model's profile names none; without effect if it does."""
    records: RecordsConfig = RecordsConfig()
    extraction: ExtractionConfig = ExtractionConfig()
    labels: LabelChanges | None = None
    """What differs from the label settings of the model's profile, or of its calibration."""
    training: TrainingChanges | None = None
    """What differs from the training settings of the model's profile."""
    regions: RegionChanges | None = None
    """What differs from the region settings of the model's profile."""
    evaluation: EvaluationConfig | None = None
    """What is evaluated and how; None stops after training (a user's own pictures without a
    benchmark)."""
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _source_names_are_unique(self) -> Self:
        names = [source.name for source in self.sources]
        if self.evaluation is not None:
            names.append(self.evaluation.source.name)
            names += [source.name for source in self.evaluation.benchmarks]
        if len(set(names)) != len(names):
            raise ValueError(f"source names must differ, got {names}")
        return self

    @model_validator(mode="after")
    def _training_leaves_out_what_is_held_out(self) -> Self:
        evaluated = None if self.evaluation is None else self.evaluation.source
        if evaluated is None or evaluated.selection.part != "held_out":
            return self
        held_out = evaluated.selection
        for source in self.sources:
            trained = source.selection
            if trained.part == "train" and not trained.leaves_out(held_out):
                raise ValueError(
                    f"evaluation.source {evaluated.name!r} holds out {held_out.held_out_ratio} of "
                    f"the images by seed {held_out.seed}, but source {source.name!r} leaves out "
                    f"{trained.held_out_ratio} by seed {trained.seed}, so an image could be in "
                    "both parts; give both selections the same held_out_ratio and seed, or "
                    f"{source.name!r} `part: all` if it has none of these images"
                )
        return self

    def label_settings(self, profile: ModelProfile) -> LabelSettings:
        """The profile's label settings with this run's changes.

        Raises:
            ConfigError: if the two do not go together.
        """
        return self._over_the_profile("labels", profile, profile.labels, self.labels)

    def training_settings(self, profile: ModelProfile) -> TrainingConfig:
        """The profile's training settings with this run's changes.

        Raises:
            ConfigError: if the two do not go together.
        """
        return self._over_the_profile("training", profile, profile.training, self.training)

    def region_settings(self, profile: ModelProfile) -> RegionSettings:
        """The profile's region settings with this run's changes.

        Raises:
            ConfigError: if the two do not go together.
        """
        return self._over_the_profile("regions", profile, profile.regions, self.regions)

    def _over_the_profile(
        self, section: str, profile: ModelProfile, settings: S, changes: Changes | None
    ) -> S:
        if changes is None:
            return settings
        try:
            return changes.applied_to(settings)
        except WrongSetting as error:
            raise ConfigError(
                f"config {self.name!r}: {section} over those of profile {profile.name!r}: {error}"
            ) from None

    @classmethod
    def load(cls, path: str | Path, replaced: Mapping[str, object] | None = None) -> Self:
        """Read a YAML file; ``replaced`` as in ``load_settings``.

        Raises:
            ConfigError: naming the file, the key and the remedy.
        """
        return load_settings(cls, path, replaced, examples="configs/")
