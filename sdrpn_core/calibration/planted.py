"""Planted sinks: what the sink rules are worth on a model that has sinks.

The reference model has none to speak of. So a few cells of every image are made what large models
have: tokens with a huge hidden state that take the strongest attention of every head, whatever the
question, and most of all that one head gives. Every kind of rule is then searched for as ever.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_contracts.calibration import CalibrationSettings
from data_contracts.sink_rules import HiddenSignal, SinkHiddenNorm
from sdrpn_core.attention.sinks import sink_map
from sdrpn_core.calibration.examples import AttentionMaps, CalibrationError, Head
from sdrpn_core.calibration.label_search import LabelChoice
from sdrpn_core.calibration.scoring import LabelScorer, head_set
from sdrpn_core.calibration.sink_search import SinkScore, search_sinks

_SINKS_PER_IMAGE = 2
_PEAK_RATIO = 1.5
"""Attention to a planted sink, as a multiple of the head's strongest cell."""
_SINK_HEAD_SHARE = 0.9
"""Share of the sink head's attention that goes to the sinks."""
_NORM, _VALUE = 12.0, 50.0
"""Relative norm and normalised value of a planted sink."""


class PlantedSinkScore(SinkScore):
    """What one rule does to labels that planted sinks spoil."""

    found: float
    """Share of the planted sinks that it finds, on the unseen scenes."""


def planted_sink_scores(
    maps: AttentionMaps, choice: LabelChoice, settings: CalibrationSettings
) -> list[PlantedSinkScore]:
    """Plant sinks, and search for a rule of every kind against them.

    Args:
        maps: of the model.
        choice: its grounding heads and label settings.
        settings: what to try.

    Raises:
        CalibrationError: if the images or the heads leave no room for them.
    """
    heads = {kind: head_set(selection.grounding) for kind, selection in choice.heads.items()}
    cells = sink_cells(maps, np.random.default_rng(0))
    grounding = {head for some in heads.values() for head in some}
    others = [head for head in maps.heads if head not in grounding]
    if not others:
        raise CalibrationError(
            f"all {len(maps.heads)} heads of the model ground, and none is left to give planted "
            "sinks away: lower max_heads, or set planted_sinks to false"
        )
    planted = plant_sinks(maps, cells, others[0])
    scores = search_sinks(LabelScorer(planted), heads, choice.labels, settings)
    return [
        PlantedSinkScore(**score.model_dump(), found=_found(planted, cells, score))
        for score in scores
    ]


def sink_cells(maps: AttentionMaps, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(N, h, w) a few cells per image, the same for all its questions, none of them true.

    Raises:
        CalibrationError: if an image has not as many others.
    """
    cells = np.zeros_like(maps.inside)
    for image in np.unique(maps.image_indices):
        rows = maps.image_indices == image
        is_true = (maps.inside | maps.overlapping)[rows].any(axis=0).ravel()
        others = np.flatnonzero(~is_true)
        if len(others) < _SINKS_PER_IMAGE:
            raise CalibrationError(
                f"true boxes leave {len(others)} of {maps.grid.num_cells} cells for planted sinks: "
                "lower print_scale or questions_per_scene, or set planted_sinks to false"
            )
        chosen = rng.choice(others, size=_SINKS_PER_IMAGE, replace=False)
        at = np.zeros(maps.grid.num_cells, dtype=np.bool_)
        at[chosen] = True
        cells[rows] = at.reshape(maps.grid)
    return cells


def plant_sinks(maps: AttentionMaps, cells: NDArray[np.bool_], sink_head: Head) -> AttentionMaps:
    """Maps with sinks at these cells, (N, h, w); each head's attention to the image stays.

    Args:
        maps: without them.
        cells: where.
        sink_head: (layer, head) that looks at little else.
    """
    is_sink = torch.from_numpy(cells)[:, None, None]
    before = maps.response
    peak = before.amax(dim=(3, 4), keepdim=True)
    response = torch.where(is_sink, _PEAK_RATIO * peak, before)
    ((layer,), (head,)) = maps.places([sink_head])
    share = is_sink[:, 0, 0] / is_sink[:, 0, 0].sum(dim=(1, 2), keepdim=True)
    rest = response[:, layer, head].masked_fill(is_sink[:, 0, 0], 0.0)
    rest = rest / rest.sum(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    response[:, layer, head] = _SINK_HEAD_SHARE * share + (1 - _SINK_HEAD_SHARE) * rest
    total = before.sum(dim=(3, 4), keepdim=True)
    response = response * total / response.sum(dim=(3, 4), keepdim=True).clamp_min(1e-12)
    return replace(maps, response=response, hidden=_planted_hidden(maps.hidden, cells))


def _planted_hidden(
    hidden: Mapping[HiddenSignal, Tensor], cells: NDArray[np.bool_]
) -> dict[HiddenSignal, Tensor]:
    is_sink = torch.from_numpy(cells)
    return {
        signal: values.masked_fill(is_sink, _NORM if isinstance(signal, SinkHiddenNorm) else _VALUE)
        for signal, values in hidden.items()
    }


def _found(maps: AttentionMaps, cells: NDArray[np.bool_], score: SinkScore) -> float:
    unseen = maps.unseen & maps.of_kind(score.kind)
    found = sink_map(score.rule, maps).numpy()[unseen] >= 1.0
    return float(found[cells[unseen]].mean())
