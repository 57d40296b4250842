"""Choice of grounding heads without boxes: from attention alone, as LocalizationHeads does.

Two criteria: a head must give the image more of its attention than most (above the elbow of the
sorted sums), and its map must be compact (low spatial entropy of what is above the mean). Each
question votes for its most compact heads; those with the most votes are taken. One criterion is
added, for a head that always looks at the same sink is compact too: its map must change with the
question about the same image.

A sink rule needs no boxes either where the model has sink tokens proper: image tokens whose hidden
state exceeds VisAttnSink's threshold at the sink dimensions.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from data_contracts.base import Settings
from data_contracts.calibration import CalibrationSettings
from data_contracts.sink_rules import SinkCombination, SinkDimensions, SinkTerm
from sdrpn_core.calibration.examples import AttentionMaps
from sdrpn_core.calibration.scoring import HeadSet, Mask
from sdrpn_core.calibration.sink_search import question_dependence

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.int8)
_SINK_VALUE = 20.0
"""VisAttnSink's threshold."""
_MOST_SINKS = 0.1
"""Share of cells; what most tokens have is no sink."""


class UnsupervisedScore(Settings):
    """What a head's attention says about it, without boxes."""

    layer: int
    head: int
    image_attention: float
    """Share of its attention that goes to the image, mean over questions."""
    spatial_entropy: float
    """Mean over questions; 0 for one compact spot."""
    question_dependence: float | None
    """1 minus the correlation between questions about the same image; None if unknown."""
    votes: float
    """Share of questions that count it among their most compact heads; 0 where it is not eligible
    for want of attention to the image, or because it does not follow the question."""


def score_unsupervised(
    maps: AttentionMaps, chosen: Mask, settings: CalibrationSettings
) -> list[UnsupervisedScore]:
    """Score every head over the chosen questions, (N,), layer by layer."""
    attention = maps.response.numpy()
    flat = attention[chosen].reshape(-1, len(maps.heads), *maps.grid)
    mass = flat.sum(axis=(2, 3)).mean(axis=0)
    entropy = np.array([[spatial_entropy(m) for m in question] for question in flat])
    images = maps.image_indices[chosen]
    dependence = [question_dependence(flat[:, index], images) for index in range(flat.shape[1])]
    follows = np.array([d is None or d > settings.max_question_dependence for d in dependence])
    is_loud = mass > elbow(mass)
    # Where criteria leave no head, there is still a best one by the others.
    eligible = next(
        mask for mask in (is_loud & follows, follows, np.ones_like(follows)) if mask.any()
    )
    votes = _votes(entropy, eligible, settings.num_unsupervised_heads)
    return [
        UnsupervisedScore(
            layer=layer,
            head=head,
            image_attention=float(mass[index]),
            spatial_entropy=float(entropy[:, index].mean()),
            question_dependence=dependence[index],
            votes=float(votes[index]),
        )
        for index, (layer, head) in enumerate(maps.heads)
    ]


def select_unsupervised(scores: Sequence[UnsupervisedScore], count: int) -> HeadSet:
    """The heads with the most votes; among equals the more compact."""
    ranked = sorted(scores, key=lambda score: (-score.votes, score.spatial_entropy))
    voted = [score for score in ranked[:count] if score.votes > 0]
    return tuple(sorted((score.layer, score.head) for score in voted))


def massive_sinks(maps: AttentionMaps, chosen: Mask) -> SinkCombination | None:
    """VisAttnSink's rule at the layer where it finds the most sinks; None if there are none."""
    rows = torch.from_numpy(chosen)
    ratios = {
        signal: float((found[rows] >= _SINK_VALUE).float().mean())
        for signal, found in maps.hidden.items()
        if isinstance(signal, SinkDimensions)
    }
    found = {signal: ratio for signal, ratio in ratios.items() if 0 < ratio <= _MOST_SINKS}
    if not found:
        return None
    signal = max(found, key=lambda known: found[known])
    return SinkCombination(rule="any", terms=(SinkTerm(signal=signal, threshold=_SINK_VALUE),))


def spatial_entropy(attention: NDArray[np.float32]) -> float:
    """Entropy of how an (h, w) map's mass is shared among the connected parts above its mean."""
    above = attention > attention.mean()
    labelled, count = ndimage.label(above, structure=_EIGHT_NEIGHBOURS)
    if count == 0:
        return float(np.log(attention.size))
    mass = ndimage.sum_labels(attention, labelled, range(1, count + 1))
    share = mass / mass.sum()
    return float(-(share * np.log(share)).sum())


def elbow(values: NDArray[np.float32]) -> float:
    """Value at the bend of the sorted curve: the point farthest from the line through its ends.

    What stands out is above it.
    """
    falling = np.sort(values)[::-1].astype(np.float64)
    if len(falling) < 3 or falling[0] == falling[-1]:
        return float(falling[-1])
    across = np.linspace(0.0, 1.0, len(falling))
    down = (falling - falling[-1]) / (falling[0] - falling[-1])
    return float(falling[np.argmax(np.abs(1.0 - across - down))])


def _votes(entropy: NDArray[np.float64], eligible: Mask, count: int) -> NDArray[np.float64]:
    """(N, heads) entropies -> (heads,) share of questions for which a head is among the best."""
    candidates = np.flatnonzero(eligible)
    order = np.argsort(entropy[:, candidates], axis=1, kind="stable")[:, :count]
    counts = np.bincount(candidates[order].ravel(), minlength=entropy.shape[1])
    return counts / max(len(entropy), 1)
