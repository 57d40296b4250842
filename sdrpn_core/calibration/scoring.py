"""Scores of heads: how good the labels are that their attention gives, against true boxes.

Both measures come from label making itself. *Labels* are what is trained on; a rejected sample has
no foreground there, which costs recall, not precision. *Foreground* is before rejection: as long as
sinks or a low threshold spread every box over the whole image, labels are all rejected and make all
heads look the same, while foreground still tells them apart. Counts are added up over questions
(micro average). Foreground in the padding counts as wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data_contracts.base import Settings
from data_contracts.enums import RoiLabel
from data_contracts.label_settings import LabelSettings
from data_contracts.sink_rules import Heads, SinkRule
from sdrpn_core.attention.sinks import sink_map
from sdrpn_core.calibration.examples import AttentionMaps, Head
from sdrpn_core.pseudo_labels import foreground_cells, make_pseudo_labels

HeadSet = tuple[Head, ...]
"""Heads in ascending order, each of them once."""
Mask = NDArray[np.bool_]


_COUNTED = ("foreground", "background", "inside", "hits", "misses", "overlaps")


class LabelQuality(Settings):
    """Agreement of labels with true boxes; 0 where undefined."""

    centre_precision: float
    """Share of foreground cells that are inside the true box by the centre rule."""
    overlap_precision: float
    """Share of foreground cells that are inside, or that the true box covers noticeably (more than
    ``examples.OVERLAP`` of the cell)."""
    recall: float
    """Share of inside cells that are foreground."""
    f1: float
    false_background: float
    """Share of inside cells that are background: taught the wrong way round."""
    labelled: float
    """Share of all cells that are foreground or background."""
    rejected: float
    """Share of questions without any label."""


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """Cells per question, (N,) each."""

    num_cells: int
    foreground: NDArray[np.int64]
    background: NDArray[np.int64]
    inside: NDArray[np.int64]
    hits: NDArray[np.int64]
    """Foreground cells inside the true box."""
    misses: NDArray[np.int64]
    """Background cells inside the true box."""
    overlaps: NDArray[np.int64]
    """Foreground cells inside the true box or overlapping with it."""

    def quality(self, chosen: Mask) -> LabelQuality:
        """Quality over the chosen questions, (N,)."""
        foreground, background, inside, hits, misses, overlaps = (
            int(getattr(self, name)[chosen].sum()) for name in _COUNTED
        )
        num_questions = int(chosen.sum())
        num_rejected = int((self.foreground[chosen] == 0).sum())
        return LabelQuality(
            centre_precision=hits / max(foreground, 1),
            overlap_precision=overlaps / max(foreground, 1),
            recall=hits / max(inside, 1),
            f1=2 * hits / max(foreground + inside, 1),
            false_background=misses / max(inside, 1),
            labelled=(foreground + background) / max(num_questions * self.num_cells, 1),
            rejected=num_rejected / max(num_questions, 1),
        )

    def gain(self, before: "LabelCounts | None", parts: Sequence[Mask]) -> float:
        """Least gain in F1 over the parts, (N,) each; None stands for no labels at all."""
        return min(
            self.quality(part).f1 - (0.0 if before is None else before.quality(part).f1)
            for part in parts
        )

    @classmethod
    def merged(cls, source_of_each: Sequence["LabelCounts"]) -> "LabelCounts":
        """Question i as counted by the i-th of N counts."""
        merged = {
            name: np.array([getattr(counts, name)[i] for i, counts in enumerate(source_of_each)])
            for name in _COUNTED
        }
        return cls(num_cells=source_of_each[0].num_cells, **merged)


class LabelScorer:
    """Scores sets of heads; foreground counts are kept, as selection asks for many sets again."""

    def __init__(self, maps: AttentionMaps) -> None:
        self.maps = maps
        self._known: dict[tuple[HeadSet, str, LabelSettings], LabelCounts] = {}

    def foreground(
        self, heads: HeadSet, settings: LabelSettings, sink: SinkRule | None = None
    ) -> LabelCounts:
        """Counts for the mean map of these heads before rejection; all else is background."""
        key = (heads, "" if sink is None else sink.model_dump_json(), settings)
        if key not in self._known:
            foreground = foreground_cells(*self.inputs(heads, settings, sink))
            self._known[key] = self.count(foreground, ~foreground)
        return self._known[key]

    def labels(
        self, heads: HeadSet, settings: LabelSettings, sink: SinkRule | None = None
    ) -> LabelCounts:
        """Counts for the labels that would be trained on."""
        labels = make_pseudo_labels(*self.inputs(heads, settings, sink)).labels
        return self.count(labels == RoiLabel.FOREGROUND, labels == RoiLabel.BACKGROUND)

    def inputs(
        self, heads: HeadSet, settings: LabelSettings, sink: SinkRule | None
    ) -> tuple[Tensor, Tensor | None, LabelSettings, NDArray[np.int64] | None]:
        """What label making is given of the mean map of these heads."""
        signal = None if sink is None else sink_map(sink, self.maps)
        return mean_map(self.maps, heads), signal, settings, self.maps.image_sizes

    def count(self, foreground: Mask, background: Mask) -> LabelCounts:
        """Counts for the cells (N, h, w) of some labels."""
        inside = self.maps.inside
        overlapping = inside | self.maps.overlapping
        cells = (
            *(foreground, background, inside),
            *(foreground & inside, background & inside, foreground & overlapping),
        )
        return LabelCounts(self.maps.grid.num_cells, *(part.sum(axis=(1, 2)) for part in cells))


def mean_map(maps: AttentionMaps, heads: HeadSet) -> Tensor:
    """(N, h, w) mean answer-to-image attention of the heads, as extraction reduces it."""
    return maps.mean_of_heads(grouped(heads))


def head_set(heads: Heads) -> HeadSet:
    """{layer: heads} as sorted pairs."""
    return tuple(sorted((layer, head) for layer, many in heads.items() for head in many))


def grouped(heads: HeadSet) -> Heads:
    """Pairs as {layer: heads}, in order."""
    layers = sorted({layer for layer, _ in heads})
    return {layer: tuple(head for at, head in sorted(heads) if at == layer) for layer in layers}


class HeadScore(Settings):
    """How well one head finds the true region by itself."""

    layer: int
    head: int
    foreground: LabelQuality
    """Foreground made from this head alone."""
    mass_inside: float
    """Share of its attention to the image that falls inside, mean over questions."""
    points_inside: float
    """Share of questions whose strongest cell is inside."""
    image_attention: float
    """Share of all its attention that goes to the image."""


def score_heads(scorer: LabelScorer, settings: LabelSettings, chosen: Mask) -> list[HeadScore]:
    """Score every head by itself over the chosen questions, layer by layer."""
    maps = scorer.maps
    flat = maps.response.flatten(3).flatten(1, 2).numpy()[chosen]  # (N, L * H, C)
    inside = maps.inside.reshape(maps.num_questions, -1)[chosen]
    total = flat.sum(axis=2)
    mass = np.einsum("nhc,nc->nh", flat, inside) / np.maximum(total, 1e-12)
    peaks = np.take_along_axis(inside[:, None], flat.argmax(axis=2)[..., None], axis=2).squeeze(2)
    return [
        HeadScore(
            layer=layer,
            head=head,
            foreground=scorer.foreground(((layer, head),), settings).quality(chosen),
            mass_inside=float(mass[:, index].mean()),
            points_inside=float(peaks[:, index].mean()),
            image_attention=float(total[:, index].mean()),
        )
        for index, (layer, head) in enumerate(maps.heads)
    ]
