"""Attention maps with planted regions and sinks, for which the right calibration is known."""

import numpy as np
import torch

from data_contracts.enums import QuestionKind
from data_contracts.sink_rules import HiddenSignal, SinkDimensions, SinkHiddenNorm
from sdrpn_core.calibration.examples import AttentionMaps

GRID = (8, 8)
SHAPE = (6, 4)
"""Layers, heads."""
TEXTUAL, NATURAL = QuestionKind.TEXTUAL, QuestionKind.NATURAL


def planted_maps(
    num_questions: int = 40,
    *,
    seed: int = 0,
    grounding: dict[QuestionKind, list[tuple[int, int]]] | None = None,
    sharpness: float = 1.0,
    sink_cells: tuple[tuple[int, int], ...] = (),
    sink_heads: tuple[tuple[int, int], ...] = (),
    is_leaking: bool = True,
) -> AttentionMaps:
    """Uniform noise in every head; grounding heads add the true box, sink cells leak into them.

    Two questions per image; sink heads show the sink cells alone.
    """
    rng = np.random.default_rng(seed)
    grounding = grounding or {TEXTUAL: [(3, 1)], NATURAL: [(3, 1)]}
    maps = rng.random((num_questions, *SHAPE, *GRID)).astype(np.float32)
    inside = np.zeros((num_questions, *GRID), dtype=bool)
    kinds = []
    for index in range(num_questions):
        kind = (TEXTUAL, NATURAL)[(index // 2) % 2]
        kinds.append(kind)
        y, x = rng.integers(0, 6, size=2)
        inside[index, y : y + 2, x : x + 2] = True
        for layer, head in grounding[kind]:
            maps[index, layer, head] *= 0.15 / sharpness
            maps[index, layer, head] += inside[index]
            for cell in sink_cells if is_leaking else ():
                maps[(index, layer, head, *cell)] = 1.5
        for layer, head in sink_heads:
            maps[index, layer, head] *= 0.01
            for cell in sink_cells:
                maps[(index, layer, head, *cell)] = 1.0
    maps /= maps.sum(axis=(3, 4), keepdims=True)
    return AttentionMaps(
        response=torch.from_numpy(maps),
        layers=tuple(range(maps.shape[1])),
        inside=inside,
        overlapping=inside,
        image_sizes=None,
        kinds=tuple(kinds),
        image_indices=np.arange(num_questions) // 2,
        example_indices=np.arange(num_questions),
        num_unusable=0,
    )


def quiet_hidden_states(num_questions: int, *, seed: int = 0) -> dict[HiddenSignal, torch.Tensor]:
    """Signals of hidden states without sinks, equal for the two questions about an image."""
    rng = np.random.default_rng(seed)
    size = (num_questions // 2, *GRID)
    norm = np.repeat(rng.uniform(0.7, 1.3, size), 2, axis=0).astype(np.float32)
    value = np.repeat(rng.uniform(0.5, 3.0, size), 2, axis=0).astype(np.float32)
    return {
        SinkHiddenNorm(layer=2): torch.from_numpy(norm),
        SinkDimensions(layer=2, dimensions=(5,)): torch.from_numpy(value),
    }
