"""What every denoising step contributes to the labels, against true boxes."""

from collections.abc import Mapping

from data_contracts.base import Settings
from data_contracts.enums import QuestionKind
from data_contracts.label_settings import LabelSettings
from data_contracts.profiles import HeadSelection
from sdrpn_core.attention.sinks import sink_map
from sdrpn_core.calibration.examples import AttentionMaps
from sdrpn_core.calibration.scoring import Mask
from sdrpn_core.pseudo_labels import denoising_steps


class StepScore(Settings):
    """Labels of one kind of question if denoising stopped after this step."""

    kind: QuestionKind
    step: str
    """Name of the step, as ``pseudo_labels.denoising_steps`` gives it."""
    centre_precision: float
    """Share of foreground cells that are inside the true box by the centre rule."""
    recall: float
    """Share of inside cells that are foreground."""
    false_background: float
    """Share of inside cells that are background."""


def score_denoising(
    maps: AttentionMaps,
    heads: Mapping[QuestionKind, HeadSelection],
    labels: LabelSettings,
    chosen: Mask,
) -> list[StepScore]:
    """Score each step for each kind over the chosen questions, (N,)."""
    scores = []
    for kind, selection in heads.items():
        rows = chosen & maps.of_kind(kind)
        inside = maps.inside[rows]
        num_inside = max(int(inside.sum()), 1)
        sink = None if selection.sink is None else sink_map(selection.sink, maps)[rows]
        sizes = None if maps.image_sizes is None else maps.image_sizes[rows]
        grounding = maps.mean_of_heads(selection.grounding)[rows]
        for step in denoising_steps(grounding, sink, labels, sizes):
            hits, misses = (
                int((cells & inside).sum()) for cells in (step.foreground, step.background)
            )
            scores.append(
                StepScore(
                    kind=kind,
                    step=step.name,
                    centre_precision=hits / max(int(step.foreground.sum()), 1),
                    recall=hits / num_inside,
                    false_background=misses / num_inside,
                )
            )
    return scores
