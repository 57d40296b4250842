"""The best that heads and threshold can do: every set of heads with every threshold, tried out.

For each kind of question by itself: all sets of up to k of the model's heads, each with each
foreground threshold, labelled as label making does. The winner on the scenes that choose is judged
on the unseen ones, like everything else; the winner on the unseen scenes themselves shows what no
method could know. Kinds may even differ in their threshold, which a profile cannot say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

import numpy as np
import torch
from numpy.typing import NDArray

from data_contracts.calibration import CalibrationSettings
from data_contracts.enums import QuestionKind, RoiLabel
from data_contracts.label_settings import LabelSettings
from sdrpn_core.calibration.examples import AttentionMaps, CalibrationError
from sdrpn_core.calibration.label_search import kinds_of
from sdrpn_core.calibration.scoring import HeadSet, LabelCounts, LabelScorer, Mask
from sdrpn_core.calibration.thresholds import with_foreground
from sdrpn_core.pseudo_labels import make_pseudo_labels

MOST_SETS = 50_000
_CELLS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class BestSet:
    """A winner."""

    heads: HeadSet
    foreground_ratio_threshold: float
    f1: float
    """Label F1 on the questions it won."""


@dataclass(frozen=True)
class ExhaustiveChoice:
    """Winners per kind of question."""

    chosen: dict[QuestionKind, BestSet]
    """Best sets on the scenes that choose."""
    hindsight: dict[QuestionKind, BestSet]
    """Best sets on the unseen scenes, which nobody could know."""


def best_of_all_sets(
    maps: AttentionMaps, labels: LabelSettings, settings: CalibrationSettings
) -> ExhaustiveChoice:
    """Try every set of up to ``settings.exhaustive_heads`` heads, without sink rules."""
    most = settings.exhaustive_heads
    sets = [c for size in range(1, most + 1) for c in combinations(maps.heads, size)]
    thresholds = sorted({*settings.foreground_thresholds, labels.foreground_ratio_threshold})
    tried = [with_foreground(labels, t, labels.strongest_region_only) for t in thresholds]
    chosen, hindsight = {}, {}
    for kind in kinds_of(maps):
        rows = maps.of_kind(kind)
        f1 = _label_f1(maps, rows, sets, tried)
        chosen[kind] = _best(sets, thresholds, f1[0])
        hindsight[kind] = _best(sets, thresholds, f1[1])
    return ExhaustiveChoice(chosen, hindsight)


def check_number_of_sets(num_heads: int, settings: CalibrationSettings) -> None:
    """Refuse to try more sets than can be tried in minutes.

    Args:
        num_heads: of all layers together.
        settings: how large the sets are.

    Raises:
        CalibrationError: if there are too many sets.
    """
    most = settings.exhaustive_heads
    num_sets = sum(comb(num_heads, size) for size in range(1, most + 1))
    if num_sets > MOST_SETS:
        raise CalibrationError(
            f"{num_sets} sets of up to {most} of {num_heads} heads are too many to try "
            f"(at most {MOST_SETS}): lower exhaustive_heads"
        )


def labels_of(
    scorer: LabelScorer, choice: dict[QuestionKind, BestSet], labels: LabelSettings
) -> LabelCounts:
    """Counts with each question labelled by its kind's winner."""
    only = labels.strongest_region_only
    by_kind = {
        kind: scorer.labels(
            best.heads, with_foreground(labels, best.foreground_ratio_threshold, only)
        )
        for kind, best in choice.items()
    }
    return LabelCounts.merged([by_kind[kind] for kind in scorer.maps.kinds])


def _best(sets: Sequence[HeadSet], thresholds: Sequence[float], f1: NDArray[np.float64]) -> BestSet:
    at, threshold = divmod(int(f1.argmax()), f1.shape[1])
    return BestSet(sets[at], thresholds[threshold], float(f1.max()))


def _label_f1(
    maps: AttentionMaps, rows: Mask, sets: Sequence[HeadSet], tried: Sequence[LabelSettings]
) -> NDArray[np.float64]:
    """(2, sets, thresholds): on the chosen questions that choose, and on the unseen ones."""
    inside = maps.inside[rows]
    parts = [~maps.unseen[rows], maps.unseen[rows]]
    sizes = None if maps.image_sizes is None else maps.image_sizes[rows]
    attention = maps.response[torch.from_numpy(rows)]
    per_set = inside.size
    f1 = np.zeros((2, len(sets), len(tried)))
    start = 0
    for batch in _batches(sets, max(_CELLS_AT_ONCE // per_set, 1)):
        means = [attention[:, *maps.places(heads)].mean(dim=1) for heads in batch]
        stacked = torch.stack(means).flatten(0, 1)
        all_sizes = None if sizes is None else np.tile(sizes, (len(batch), 1))
        for column, labels in enumerate(tried):
            made = make_pseudo_labels(stacked, None, labels, all_sizes).labels
            foreground = (made == RoiLabel.FOREGROUND).reshape(len(batch), *inside.shape)
            hits = (foreground & inside).sum(axis=(2, 3))
            total = foreground.sum(axis=(2, 3)) + inside.sum(axis=(1, 2))
            for part, mask in enumerate(parts):
                f1[part, start : start + len(batch), column] = (
                    2 * hits[:, mask].sum(axis=1) / np.maximum(total[:, mask].sum(axis=1), 1)
                )
        start += len(batch)
    return f1


def _batches(sets: Sequence[HeadSet], size: int) -> Iterator[list[HeadSet]]:
    rest = iter(sets)
    while batch := list(islice(rest, size)):
        yield batch
