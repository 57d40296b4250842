"""Model profiles: everything model-specific, as data.

A profile says which heads ground, which signal marks sinks, where the RPN branches off and how
questions are put. A new model of a known family needs a profile file and no code.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_contracts.base import Settings
from data_contracts.enums import QuestionKind
from data_contracts.label_settings import LabelSettings

Heads = dict[int, tuple[int, ...]]
"""Layer index -> head indices, both 0-based."""


class SinkHeads(Settings):
    """Sink signal: mean attention of hand-picked heads."""

    rule: Literal["heads"] = "heads"
    heads: Heads


class SinkLayerMean(Settings):
    """Sink signal: mean attention over all heads of one layer."""

    rule: Literal["layer_mean"] = "layer_mean"
    layer: int = Field(ge=0)


SinkRule = Annotated[SinkHeads | SinkLayerMean, Field(discriminator="rule")]


class HeadSelection(Settings):
    """Which attention grounds a question, and which attention betrays sinks."""

    grounding: Heads
    sink: SinkRule | None = None

    @property
    def captured(self) -> dict[int, tuple[int, ...] | None]:
        """Heads to record per layer; None for all heads of a layer."""
        wanted: dict[int, tuple[int, ...] | None] = dict(self.grounding)
        match self.sink:
            case SinkHeads(heads=heads):
                for layer, layer_heads in heads.items():
                    already = wanted.get(layer, ()) or ()
                    wanted[layer] = tuple(sorted({*already, *layer_heads}))
            case SinkLayerMean(layer=layer):
                wanted[layer] = None
            case None:
                pass
        return wanted


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
    heads: dict[QuestionKind, HeadSelection]
    labels: LabelSettings = LabelSettings()
    """Label settings that suit this model, its sink threshold among them."""
    rpn: RpnShape
    source: str
    """Where these values come from: a paper, a repository, a calibration run."""

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        for field in ("{question}", "{images}"):
            if self.prompt.count(field) != 1:
                raise ValueError(f"prompt must contain {field} exactly once")
        if self.rpn.branch_layer + self.rpn.depth > self.num_layers:
            raise ValueError(
                f"the RPN copies layers {self.rpn.branch_layer} to "
                f"{self.rpn.branch_layer + self.rpn.depth - 1}, the model has {self.num_layers}"
            )
        for kind, selection in self.heads.items():
            for layer, heads in selection.captured.items():
                if layer >= self.num_layers or any(head >= self.num_heads for head in heads or ()):
                    raise ValueError(
                        f"{kind} heads {{{layer}: {heads}}} are outside the model's "
                        f"{self.num_layers} layers x {self.num_heads} heads"
                    )
        return self
