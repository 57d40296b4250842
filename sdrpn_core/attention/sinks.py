"""Sink signals: what betrays image tokens that get attention whatever the question.

Four signals (two from attention, two from hidden states) and combinations of them become one map,
which label making compares with one threshold. Extraction and calibration compute them here, each
from its own source.

Shape legend: N batch, S sequence, d hidden size, C image cells, h x w grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from data_contracts.sink_rules import (
    Heads,
    HiddenSignal,
    SinkCombination,
    SinkDimensions,
    SinkHeads,
    SinkHiddenNorm,
    SinkLayerMean,
    SinkRule,
)


class SinkSource(Protocol):
    """Attention and hidden states of one or many questions; maps are (..., h, w) float32."""

    def mean_of_heads(self, heads: Heads) -> Tensor:
        """Mean attention of these heads."""

    def mean_of_layer(self, layer: int) -> Tensor:
        """Mean attention of all heads of one layer."""

    def of_hidden_state(self, signal: HiddenSignal) -> Tensor:
        """A signal that ``HiddenRecorder`` recorded."""


def sink_map(rule: SinkRule, source: SinkSource) -> Tensor:
    """Sink signal of a rule, (..., h, w) float32; a combination's in units of its thresholds."""
    match rule:
        case SinkHeads(heads=heads):
            return source.mean_of_heads(heads)
        case SinkLayerMean(layer=layer):
            return source.mean_of_layer(layer)
        case SinkHiddenNorm() | SinkDimensions():
            return source.of_hidden_state(rule)
        case SinkCombination(rule=combine, terms=terms):
            scaled = torch.stack([sink_map(t.signal, source) / t.threshold for t in terms])
            return scaled.amax(dim=0) if combine == "any" else scaled.amin(dim=0)


@dataclass
class HiddenRecorder:
    """Reduces hidden states to sink signals while the layers run.

    Attributes:
        signals: what to record.
        columns_NC: positions of each sample's image tokens among the columns.
        maps: signal -> (N, C) float32; norms are absolute here, see ``relative_norm``.
    """

    signals: Sequence[HiddenSignal]
    columns_NC: Tensor
    maps: dict[HiddenSignal, Tensor] = field(default_factory=dict)

    def see(self, layer: int, hidden: Tensor) -> None:
        """Take (N, S, d), the input of a decoder layer."""
        wanted = [signal for signal in self.signals if signal.layer == layer]
        if not wanted:
            return
        # Layers may lie on different devices when a model is spread over several.
        index = self.columns_NC.to(hidden.device)[:, :, None].expand(-1, -1, hidden.shape[2])
        # Sinks are where half precision overflows first.
        tokens = hidden.gather(1, index).float()
        for signal in wanted:
            self.maps[signal] = _reduced(signal, tokens).to(self.columns_NC.device)


def rms_normalised(hidden: Tensor) -> Tensor:
    """(..., d) hidden states divided by their root mean square; zero stays zero."""
    return hidden / hidden.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(1e-12)


def relative_norm(norm: Tensor) -> Tensor:
    """(..., C) norms of one image's tokens in multiples of their median."""
    return norm / norm.median(dim=-1, keepdim=True).values.clamp_min(1e-12)


def _reduced(signal: HiddenSignal, tokens: Tensor) -> Tensor:
    """(N, C, d) -> (N, C)."""
    match signal:
        case SinkHiddenNorm():
            return tokens.square().sum(dim=-1).sqrt()
        case SinkDimensions(dimensions=dimensions):
            return rms_normalised(tokens)[..., list(dimensions)].abs().amax(dim=-1)
