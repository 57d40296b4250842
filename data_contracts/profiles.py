"""Model profiles: everything model-specific, as data.

A profile says which heads ground, which signal marks sinks, where the RPN branches off, how
questions are put and how RoI maps become crops. A new model of a known family needs a profile file
and no code.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from data_contracts.base import Settings
from data_contracts.enums import QuestionKind
from data_contracts.label_settings import LabelSettings, RegionSettings
from data_contracts.settings_files import ConfigError
from data_contracts.sink_rules import (
    OWN_THRESHOLDS,
    Heads,
    HiddenSignal,
    SinkDimensions,
    SinkHeads,
    SinkHiddenNorm,
    SinkLayerMean,
    SinkRule,
    sink_signals,
    sink_unit,
)
from data_contracts.training import TrainingConfig


class UncalibratedProfile(ConfigError):
    """A profile does not say which heads ground a kind of question."""


class SquareGrid(Settings):
    """Images are padded to a square and shown on a grid of fixed size."""

    rule: Literal["square"] = "square"
    side: int = Field(ge=1)
    """Cells along each side."""


class DynamicGrid(Settings):
    """Images keep their shape; the number of cells follows their size between two bounds."""

    rule: Literal["dynamic"] = "dynamic"
    min_cells: int = Field(ge=1)
    max_cells: int = Field(ge=1)

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        if self.min_cells > self.max_cells:
            raise ValueError("min_cells must not exceed max_cells")
        return self


_Level = Annotated[int, Field(ge=0, le=255)]
GridRule = Annotated[SquareGrid | DynamicGrid, Field(discriminator="rule")]


class ImageSettings(Settings):
    """How images are put before the model.

    Labels are made, and the RPN is trained, on one grid; answering may use another. Families whose
    vision tower knows one square only (LLaVA) take no grid rules.
    """

    fill: tuple[_Level, _Level, _Level] | None = None
    """Colour of the letterbox padding; None takes the image processor's mean colour."""
    labels: GridRule | None = None
    """Grid of extraction and training; None where the vision tower leaves no choice."""
    answers: GridRule | None = None
    """Grid of images and crops when answering; None where the tower leaves no choice."""


def plain_regions(images: ImageSettings) -> RegionSettings:
    """Region settings of a model for which nobody has chosen any: those of the preset ``default``.

    Models with dynamic grids enlarge small pictures, to 560 or 576 cells in the packaged profiles,
    and so see every pixel of most. They zoom all the same: the paper's gains on POPE and OCRBench
    are on such pictures, as a crop has more tokens for the same place.
    """
    preset = RegionSettings.preset("default")
    if isinstance(images.answers, DynamicGrid):
        return preset.with_changes(max_seen_ratio=None)
    return preset


class ExtractionInstruction(Settings):
    """What the model is asked to do for extraction only, so that its answer shows a place."""

    replaces: str = Field(min_length=1)
    """Answer-style suffix of the question that gives way; the rest of the question stays."""
    instruction: str = Field(min_length=1)

    def apply(self, question: str) -> str:
        """The question with the instruction in the suffix's place, or after it if there is none."""
        if self.replaces in question:
            return question.replace(self.replaces, self.instruction)
        return f"{question}\n{self.instruction}"


class HeadSelection(Settings):
    """Which attention grounds a question, and what betrays sinks."""

    grounding: Heads
    sink: SinkRule | None = None

    @property
    def captured(self) -> dict[int, tuple[int, ...] | None]:
        """Heads to record per layer; None for all heads of a layer."""
        wanted: dict[int, tuple[int, ...] | None] = dict(self.grounding)
        for signal in sink_signals(self.sink):
            match signal:
                case SinkHeads(heads=heads):
                    for layer, layer_heads in heads.items():
                        already = wanted.get(layer, ())
                        if already is not None:
                            wanted[layer] = tuple(sorted({*already, *layer_heads}))
                case SinkLayerMean(layer=layer):
                    wanted[layer] = None
                case SinkHiddenNorm() | SinkDimensions():
                    pass
        return wanted

    @property
    def hidden_signals(self) -> tuple[HiddenSignal, ...]:
        """Sink signals to record from hidden states."""
        signals = sink_signals(self.sink)
        return tuple(s for s in signals if isinstance(s, SinkHiddenNorm | SinkDimensions))


class RpnShape(Settings):
    """Where the region proposal network branches off and how it scores."""

    branch_layer: int = Field(ge=1)
    """B: number of frozen decoder layers run before the RPN."""
    depth: int = Field(3, ge=1)
    """R: number of decoder layers copied; the last gives only its norm and q/k projections."""
    final_norm: bool = True
    """Apply a trained copy of the model's final norm before scoring (LLaVA)."""
    rotary_scores: bool = False
    """Apply rotary embedding to the scoring q and k (Qwen)."""

    @property
    def last_layer(self) -> int:
        """Index of the last layer that is copied: the one that scores."""
        return self.branch_layer + self.depth - 1


class FamilyDefaults(Settings):
    """What is assumed of a family's model for which nothing better is known yet."""

    prompt: str
    images: ImageSettings = ImageSettings()
    final_norm: bool = True
    rotary_scores: bool = False
    training: TrainingConfig = TrainingConfig(batch_size=512)
    """The reference's for LLaVA."""
    width_per_head: int = 128
    """Hidden size over attention heads, which differs between the sizes of some families: for rough
    plans."""
    num_cells: int = 576
    """Of the grid, in families whose tower has one only."""


class ModelProfile(Settings):
    """Everything the pipeline must know about one model."""

    name: str = Field(min_length=1)
    family: str = Field(min_length=1)
    """Adapter that drives the model, for example ``llava``."""
    model_id: str = Field(min_length=1)
    """Hub id or directory; ``reference`` is the model shipped with the package."""
    revision: str | None = None
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    prompt: str
    """Prompt with ``{question}`` and one ``{images}`` where the image placeholders go."""
    next_turn: str | None = None
    """Text between a turn's answer and the next one's, with ``{question}``; begins with what ends
    an answer. None if unknown: turns of a conversation are then asked one by one."""
    images: ImageSettings = ImageSettings()
    extraction_instructions: dict[QuestionKind, ExtractionInstruction] = {}
    """By question kind; kinds without one are asked as they are. Training asks as they are."""
    heads: dict[QuestionKind, HeadSelection]
    """By question kind; empty says that nobody has calibrated the model yet."""
    labels: LabelSettings = LabelSettings()
    """Label settings that suit this model, its sink threshold among them."""
    rpn: RpnShape
    training: TrainingConfig = TrainingConfig()
    """How the RPN is trained unless a run says otherwise."""
    regions: RegionSettings = Field(None, validate_default=True)
    """How regions are cut out of RoI maps, and what the model reads of image and crops, unless a
    run says otherwise; keys that are left out are those of ``plain_regions``."""
    source: str
    """Where these values come from: a paper, a repository, a calibration run."""

    def identity(self) -> dict[str, Any]:
        """As plain data, all that decides what is made with the model.

        How an RPN is trained and asked is left out: it stands beside this wherever one is.
        """
        return self.model_dump(mode="json", exclude={"training", "regions"})

    @property
    def is_calibrated(self) -> bool:
        """Whether the profile says where the model's attention grounds."""
        return bool(self.heads)

    def heads_for(self, kind: QuestionKind) -> HeadSelection:
        """Grounding and sink heads for one kind of question.

        Raises:
            UncalibratedProfile: if there are none; says how to find them.
        """
        self.require_calibrated()
        if kind not in self.heads:
            raise UncalibratedProfile(
                f"profile {self.name!r} has no heads for {kind.value} questions: {self._remedy}"
            )
        return self.heads[kind]

    def require_calibrated(self) -> None:
        """Refuse a profile without any heads.

        Raises:
            UncalibratedProfile: says how to calibrate.
        """
        if not self.is_calibrated:
            raise UncalibratedProfile(
                f"profile {self.name!r} is uncalibrated, its grounding heads are not known: "
                f"{self._remedy}"
            )

    @property
    def _remedy(self) -> str:
        return (
            f"run `sdrpn calibrate --model {self.model_id} --out FOLDER`, then give --profile "
            "FOLDER/profile.yaml or set model.profile to it"
        )

    def extraction_question(self, question: str, kind: QuestionKind) -> str:
        """The question as it is put when attention is extracted."""
        instruction = self.extraction_instructions.get(kind)
        return question if instruction is None else instruction.apply(question)

    @field_validator("regions", mode="before")
    @classmethod
    def _regions_over_the_plain_ones(cls, given: object, info: ValidationInfo) -> object:
        if given is None:  # left out, or all keys are commented out
            given = {}
        if not isinstance(given, dict):
            return given
        return {**plain_regions(info.data.get("images", ImageSettings())).model_dump(), **given}

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        for field in ("{question}", "{images}"):
            if self.prompt.count(field) != 1:
                raise ValueError(f"prompt must contain {field} exactly once")
        if self.next_turn is not None and self.next_turn.count("{question}") != 1:
            raise ValueError("next_turn must contain {question} exactly once")
        if self.rpn.last_layer >= self.num_layers:
            raise ValueError(
                f"the RPN copies layers {self.rpn.branch_layer} to {self.rpn.last_layer}, the "
                f"model has {self.num_layers}"
            )
        for kind, selection in self.heads.items():
            for layer, heads in selection.captured.items():
                if layer >= self.num_layers or any(head >= self.num_heads for head in heads or ()):
                    raise ValueError(
                        f"{kind} heads {{{layer}: {heads}}} are outside the model's "
                        f"{self.num_layers} layers x {self.num_heads} heads"
                    )
            for signal in selection.hidden_signals:
                if signal.layer >= self.num_layers:
                    raise ValueError(
                        f"{kind} sinks look at layer {signal.layer}, the model has "
                        f"{self.num_layers}"
                    )
        return self

    @model_validator(mode="after")
    def _sink_threshold_fits_the_rules(self) -> Self:
        """A profile has one sink threshold: signals of different units need terms of their own."""
        units = {sink_unit(s.sink) for s in self.heads.values() if s.sink is not None}
        if len(units) > 1:
            raise ValueError(
                f"sink rules in different units ({', '.join(sorted(units))}) cannot share "
                "labels.sink_threshold: write each as {rule: any, terms: [{signal: ..., "
                "threshold: ...}]}"
            )
        if units == {OWN_THRESHOLDS} and self.labels.sink_threshold != 1.0:
            raise ValueError(
                "combined sink rules are measured in their terms' own thresholds: set "
                "labels.sink_threshold to 1.0"
            )
        return self
