"""What a model's answer to one question looks at: what ``sdrpn attention`` shows.

The same attention and the same pseudo-label that the stages make of a question.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_contracts.enums import ExtractionStatus, LabelStatus, QuestionKind
from data_contracts.errors import SdrpnError
from data_contracts.label_settings import LabelSettings
from data_contracts.profiles import ModelProfile
from data_contracts.settings_files import ConfigError, parse_settings
from data_contracts.sink_rules import Heads
from sdrpn_core.extraction.generated_answers import Request, extract_attention
from sdrpn_core.geometry import BoxXYXY, GridBox, GridShape, Letterbox
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.pseudo_labels import make_pseudo_labels
from sdrpn_core.report.overlay import (
    CROP_COLOUR,
    draw_boxes,
    draw_heat_map,
    draw_labels,
    relative_to_peak,
    shrink,
    side_by_side,
)
from tasks.make_labels import REASONS

_MAX_SIDE = 1024
"""Longer side of each of the two pictures, in pixels."""
_HEADS = re.compile(r"(\d+)(?::(\d+(?:,\d+)*))?")


class NoAttention(SdrpnError):
    """The answer gives no attention map."""


@dataclass(frozen=True, eq=False)
class AttentionView:
    """One answer, with the map and the pseudo-label that it gives."""

    answer: str
    heads: Heads
    """Whose attention it is, the mean of them."""
    attention: NDArray[np.float32]
    """(h, w), as extracted: sinks and padding included."""
    labels: NDArray[np.int8]
    """(h, w) of ``RoiLabel``."""
    status: LabelStatus
    box: BoxXYXY | None
    """Of the label's foreground, in source pixels; None if it has none."""
    letterbox: Letterbox

    def as_json(self) -> dict[str, Any]:
        """As plain data; boxes to a tenth of a pixel."""
        return {
            "answer": self.answer,
            "heads": {str(layer): list(heads) for layer, heads in self.heads.items()},
            "label": self.status.value,
            "box": None if self.box is None else [round(side, 1) for side in self.box],
            "grid": list(self.attention.shape),
            "attention": self.attention.tolist(),
            "labels": self.labels.tolist(),
        }

    def label_line(self) -> str:
        """The pseudo-label in words."""
        if self.status is not LabelStatus.OK or self.box is None:
            return f"label: none, {REASONS[self.status]}"
        corners = ", ".join(f"{side:.0f}" for side in self.box)
        return f"label: box ({corners}) in pixels"

    def draw(self, image: Image.Image) -> Image.Image:
        """The attention relative to its peak, and right of it the pseudo-label with its box."""
        picture, letterbox = shrink(image, _MAX_SIDE), self.letterbox
        heat = draw_heat_map(picture, relative_to_peak(self.attention, letterbox), letterbox)
        label = draw_labels(picture, self.labels, letterbox)
        boxes = [] if self.box is None else [self.box]
        return side_by_side([heat, draw_boxes(label, boxes, image.size, CROP_COLOUR)])


def with_heads(profile: ModelProfile, kind: QuestionKind, choices: Sequence[str]) -> ModelProfile:
    """The profile with other grounding heads for a kind of question, and no sinks.

    Args:
        profile: calibrated or not.
        kind: of question.
        choices: ``LAYER:HEAD,HEAD`` each, or ``LAYER`` for all of its heads.

    Raises:
        ConfigError: if a choice is not written so, or there is no such layer or head.
    """
    heads: dict[int, tuple[int, ...]] = {}
    for choice in choices:
        found = _HEADS.fullmatch(choice)
        if found is None:
            raise ConfigError(
                f"--heads {choice}: give LAYER or LAYER:HEAD,HEAD, counted from 0, such as 14:3,24"
            )
        layer, listed = int(found[1]), found[2]
        numbers = range(profile.num_heads) if listed is None else map(int, listed.split(","))
        heads[layer] = tuple(sorted({*heads.get(layer, ()), *numbers}))
    chosen = {"heads": {kind: {"grounding": heads}}}
    return parse_settings(ModelProfile, {**profile.model_dump(), **chosen}, "--heads")


def view_attention(
    adapter: ModelAdapter,
    image: Image.Image,
    question: str,
    kind: QuestionKind,
    settings: LabelSettings,
    *,
    max_new_tokens: int,
) -> AttentionView:
    """Let the frozen model answer, and see where.

    Args:
        adapter: the model, with a profile that has heads for the kind.
        image: upright RGB.
        question: as labels ask it.
        kind: whose heads to take.
        settings: of the pseudo-label.
        max_new_tokens: of an answer.

    Raises:
        NoAttention: if the answer is empty or has no end; extraction reports those as such.
    """
    request = Request(image, question, kind)
    (found,) = extract_attention(adapter, [request], max_new_tokens=max_new_tokens)
    if found.grounding is None:
        raise NoAttention(_why_none(found.status, found.response, max_new_tokens))
    attention, letterbox = found.grounding.numpy(), found.letterbox
    sink = None if found.sink is None else found.sink.numpy()[None]
    placement = np.array([letterbox.placement])
    made = make_pseudo_labels(attention[None], sink, settings, placement)
    return AttentionView(
        answer=found.response.strip(),
        heads=adapter.profile.heads_for(kind).grounding,
        attention=attention,
        labels=made.labels[0],
        status=made.status[0],
        box=_box_in_image(made.boxes[0], found.grid, letterbox),
        letterbox=letterbox,
    )


def _why_none(status: ExtractionStatus, answer: str, max_new_tokens: int) -> str:
    if status is ExtractionStatus.OVERLONG_RESPONSE:
        return (
            f"the answer does not end within {max_new_tokens} tokens ({answer[:60]!r}...): raise "
            "--max-new-tokens, or ask for a single word or phrase"
        )
    return (
        "the model answers nothing, so that there is no attention to show: ask as it was taught to "
        "be asked, say with a new line and 'Answer the question using a single word or phrase.' "
        "after the question"
    )


def _box_in_image(
    cells: NDArray[np.int32], grid: GridShape, letterbox: Letterbox
) -> BoxXYXY | None:
    return None if cells[0] < 0 else letterbox.cells_to_image(GridBox(*cells.tolist()), grid)
