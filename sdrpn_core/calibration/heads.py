"""Choice of grounding heads: greedy forward selection that two halves of the scenes must agree on.

Layers are not restricted: the whole model generates the answer anyway, so a late head costs nothing
to read, and the RPN learns the map whatever layer it came from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from data_contracts.base import Settings
from data_contracts.calibration import CalibrationSettings
from data_contracts.enums import QuestionKind
from data_contracts.label_settings import LabelSettings
from sdrpn_core.calibration.scoring import HeadSet, LabelCounts, LabelScorer, Mask


class SelectionStep(Settings):
    """One head that was tried as the next of the set: the best of all that were left."""

    layer: int
    head: int
    f1: tuple[float, ...]
    """Foreground F1 of the set with this head, on each half."""
    gain: float
    """Least gain over the halves."""
    is_kept: bool


@dataclass(frozen=True)
class HeadChoice:
    """Heads chosen for some questions."""

    heads: HeadSet
    steps: tuple[SelectionStep, ...]


def select_heads(
    scorer: LabelScorer,
    labels: LabelSettings,
    parts: Sequence[Mask],
    settings: CalibrationSettings,
) -> HeadChoice:
    """Greedy forward selection: heads are added while foreground F1 gains on every part.

    Args:
        scorer: of the maps.
        labels: how labels are made.
        parts: (N,) each, questions that must agree.
        settings: how many heads are tried and kept.
    """
    heads: HeadSet = ()
    before: LabelCounts | None = None
    steps: list[SelectionStep] = []
    candidates = _best_alone(scorer, labels, parts, settings.num_head_candidates)
    while len(heads) < min(settings.max_heads, len(candidates)):
        proposals = [tuple(sorted((*heads, *head))) for head in candidates if head[0] not in heads]
        counts = {proposal: scorer.foreground(proposal, labels) for proposal in proposals}
        # The first of equals, which is the one that is better alone.
        best = max(proposals, key=lambda proposal: counts[proposal].gain(before, parts))
        ((layer, head),) = set(best) - set(heads)
        gain = counts[best].gain(before, parts)
        is_kept = not heads or gain >= settings.min_gain
        f1 = tuple(counts[best].quality(part).f1 for part in parts)
        steps.append(SelectionStep(layer=layer, head=head, f1=f1, gain=gain, is_kept=is_kept))
        if not is_kept:
            break
        heads, before = best, counts[best]
    return HeadChoice(heads, tuple(steps))


def select_heads_by_kind(
    scorer: LabelScorer,
    labels: LabelSettings,
    kinds: Sequence[QuestionKind],
    settings: CalibrationSettings,
) -> dict[QuestionKind, HeadChoice]:
    """Heads per question kind: common ones, unless a kind's own are clearly better for it.

    Common heads rest on more questions, and users' kinds need not match the scenes' kinds.
    """
    maps = scorer.maps
    common = select_heads(scorer, labels, maps.halves, settings)
    choices = {}
    for kind in kinds:
        parts = [half & maps.of_kind(kind) for half in maps.halves]
        own = select_heads(scorer, labels, parts, settings)
        gain = scorer.foreground(own.heads, labels).gain(
            scorer.foreground(common.heads, labels), parts
        )
        choices[kind] = own if gain >= settings.min_gain else common
    return choices


def _best_alone(
    scorer: LabelScorer, labels: LabelSettings, parts: Sequence[Mask], count: int
) -> list[HeadSet]:
    """Single heads, best first; among equals the earliest layer and head."""
    every_head: list[HeadSet] = [(head,) for head in scorer.maps.heads]
    gains = {head: scorer.foreground(head, labels).gain(None, parts) for head in every_head}
    return sorted(every_head, key=lambda head: -gains[head])[:count]
