"""What every denoising step contributes to the labels, against true boxes."""

from collections.abc import Mapping

from data_contracts.base import Settings
from data_contracts.enums import QuestionKind
from data_contracts.label_settings import LabelSettings
from data_contracts.profiles import HeadSelection
from sdrpn_core.calibration.scoring import LabelScorer, Mask, head_set
from sdrpn_core.pseudo_labels import denoising_steps

_MEASURED = {"centre_precision", "recall", "false_background"}


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
    scorer: LabelScorer,
    heads: Mapping[QuestionKind, HeadSelection],
    labels: LabelSettings,
    chosen: Mask,
) -> list[StepScore]:
    """Score each step for each kind over the chosen questions, (N,)."""
    scores = []
    for kind, selection in heads.items():
        rows = chosen & scorer.maps.of_kind(kind)
        inputs = scorer.inputs(head_set(selection.grounding), labels, selection.sink)
        for step in denoising_steps(*inputs):
            quality = scorer.count(step.foreground, step.background).quality(rows)
            figures = quality.model_dump(include=_MEASURED)
            scores.append(StepScore(kind=kind, step=step.name, **figures))
    return scores
