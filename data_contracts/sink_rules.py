"""Sink rules: what betrays image tokens that get attention whatever the question."""

from typing import Annotated, Literal

from pydantic import Field

from data_contracts.base import Settings

_Index = Annotated[int, Field(ge=0)]
_SomeHeads = Annotated[tuple[_Index, ...], Field(min_length=1)]
Heads = Annotated[dict[_Index, _SomeHeads], Field(min_length=1)]
"""Layer index -> head indices, both 0-based."""


class SinkHeads(Settings):
    """Sink signal: mean attention of hand-picked heads."""

    rule: Literal["heads"] = "heads"
    heads: Heads


class SinkLayerMean(Settings):
    """Sink signal: mean attention over all heads of one layer."""

    rule: Literal["layer_mean"] = "layer_mean"
    layer: int = Field(ge=0)


class SinkHiddenNorm(Settings):
    """Sink signal: norm of the hidden state, in multiples of the median over the image's tokens."""

    rule: Literal["hidden_norm"] = "hidden_norm"
    layer: int = Field(ge=0)
    """Decoder layer that the hidden state enters."""


class SinkDimensions(Settings):
    """Sink signal: largest |value| of the RMS-normalised hidden state at sink dimensions.

    VisAttnSink's test: dimensions 2533 and 1415 for Llama-2-7B, 2100 and 4743 for 13B, above 20.
    """

    rule: Literal["dimensions"] = "dimensions"
    layer: int = Field(ge=0)
    """Decoder layer that the hidden state enters."""
    dimensions: tuple[_Index, ...] = Field(min_length=1)


HiddenSignal = SinkHiddenNorm | SinkDimensions
SinkSignal = Annotated[SinkHeads | SinkLayerMean | HiddenSignal, Field(discriminator="rule")]


class SinkTerm(Settings):
    """One signal with its own threshold."""

    signal: SinkSignal
    threshold: float = Field(gt=0)


class SinkCombination(Settings):
    """Several rules in one: a token is a sink if any, or if all, of the terms say so.

    The sink map is then the largest (any) or smallest (all) signal in units of its own threshold,
    so that ``labels.sink_threshold`` is 1.
    """

    rule: Literal["any", "all"]
    terms: tuple[SinkTerm, ...] = Field(min_length=1)


SinkRule = Annotated[
    SinkHeads | SinkLayerMean | HiddenSignal | SinkCombination, Field(discriminator="rule")
]


OWN_THRESHOLDS = "their own thresholds"
"""Unit of combinations."""


def sink_signals(rule: SinkRule | None) -> tuple[SinkSignal, ...]:
    """The signals that a rule looks at."""
    match rule:
        case None:
            return ()
        case SinkCombination(terms=terms):
            return tuple(term.signal for term in terms)
        case _:
            return (rule,)


def sink_unit(rule: SinkRule) -> str:
    """What a rule's signal is measured in: only rules of one unit can share a threshold."""
    match rule:
        case SinkHeads() | SinkLayerMean():
            return "attention"
        case SinkHiddenNorm():
            return "median norms"
        case SinkDimensions():
            return "normalised values"
        case SinkCombination():
            return OWN_THRESHOLDS
