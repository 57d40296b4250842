"""What a model's answer to one question looks at: what ``sdrpn attention`` shows.

The same attention and the same pseudo-label that the stages make of a question.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_contracts.enums import ExtractionStatus, LabelStatus, QuestionKind
from data_contracts.errors import SdrpnError
from data_contracts.profiles import HeadSelection, ModelProfile
from data_contracts.settings_files import ConfigError
from data_contracts.sink_rules import Heads
from sdrpn_core.extraction.generated_answers import (
    NOT_FINITE,
    PLACEHOLDER_ASKED,
    ExtractedAttention,
    Request,
    extract_attention,
)
from sdrpn_core.geometry import BoxXYXY, GridBox, GridShape, Letterbox
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.pseudo_labels import make_pseudo_labels
from sdrpn_core.report.overlay import (
    CROP_COLOUR,
    draw_boxes,
    draw_heat_map,
    draw_labels,
    joined,
    relative_to_peak,
    shrink,
)
from tasks.make_labels import REASONS
from tasks.shown_answers import ASK_AS_TAUGHT, rounded_box, shown_box, shown_text

_MAX_SIDE = 1024
"""Longer side of each of the two pictures, in pixels, unless the shorter would vanish."""
_MIN_SIDE = 64
_HEADS = re.compile(r"([0-9]{1,4})(?::([0-9]{1,4}(?:,[0-9]{1,4})*))?")


class NoAttention(SdrpnError):
    """The answer gives no attention map."""


@dataclass(frozen=True, eq=False)
class AttentionView:
    """One answer, with the map and the pseudo-label that it gives."""

    question: str
    """As it was put."""
    answer: str
    heads: Heads
    """Whose attention it is, the mean of them."""
    attention: NDArray[np.float32]
    """(h, w) on the canvas, as extracted: sinks and padding included."""
    labels: NDArray[np.int8]
    """(h, w) of ``RoiLabel``."""
    status: LabelStatus
    box: BoxXYXY | None
    """What the label zooms into, in source pixels; None if that shows nothing of the picture. A
    rejected label keeps its box, to show why."""
    letterbox: Letterbox

    def as_json(self) -> dict[str, Any]:
        """As plain data; boxes to a tenth of a pixel, cells that are not finite as None."""
        rows = self.attention.tolist()
        return {
            "question": self.question,
            "answer": self.answer,
            "heads": {str(layer): list(heads) for layer, heads in self.heads.items()},
            "label": self.status.value,
            "reason": REASONS[self.status],
            "box": None if self.box is None else rounded_box(self.box),
            "letterbox": asdict(self.letterbox),
            "grid": list(self.attention.shape),
            "attention": [[cell if isfinite(cell) else None for cell in row] for row in rows],
            "labels": self.labels.tolist(),
        }

    def lines(self) -> list[str]:
        """Lines for a person: the answer, its pseudo-label, and whose attention it is."""
        heads = (f"{layer}:{','.join(map(str, own))}" for layer, own in self.heads.items())
        attention = f"attention: of heads {' '.join(heads)}{self._peak_in_padding()}"
        return [shown_text(self.answer), f"label: {self._label()}", attention]

    def draw(self, image: Image.Image) -> Image.Image:
        """The attention, and right of it or below it the pseudo-label with its box.

        The attention is relative to its peak within the picture; a rejected label's box is dashed.
        """
        thinness = max(image.size) / min(image.size)
        picture = shrink(image, max(_MAX_SIDE, round(_MIN_SIDE * thinness)))
        letterbox = self.letterbox
        heat = draw_heat_map(picture, relative_to_peak(self.attention, letterbox), letterbox)
        label = draw_labels(picture, self.labels, letterbox)
        boxes = [] if self.box is None else [self.box]
        is_rejected = self.status is not LabelStatus.OK
        label = draw_boxes(label, boxes, image.size, CROP_COLOUR, dashed=is_rejected)
        return joined([heat, label], in_column=image.width > image.height)

    def _label(self) -> str:
        if self.status is not LabelStatus.OK:
            return f"none, {REASONS[self.status]}"
        if self.box is None:
            return "its box lies in the padding"
        return f"box {shown_box(self.box)} in pixels"

    def _peak_in_padding(self) -> str:
        in_picture = self.letterbox.content_mask(GridShape(*self.attention.shape))
        inside, peak = self.attention[in_picture].max(initial=0.0), self.attention.max()
        if not peak > inside:
            return ""
        return (
            f"; strongest in the padding, {peak / max(inside, 1e-12):.1f} times the picture's peak"
        )


def with_heads(profile: ModelProfile, kind: QuestionKind, choices: Sequence[str]) -> ModelProfile:
    """The profile with other grounding heads for a kind of question, and without a sink rule.

    Args:
        profile: calibrated or not.
        kind: of question.
        choices: ``LAYER:HEAD,HEAD`` each, or ``LAYER`` for all of its heads.

    Raises:
        ConfigError: if a choice is not written so, or there is no such layer or head.
    """
    heads: dict[int, tuple[int, ...]] = {}
    for choice in choices:
        layer, listed = _parsed(choice, profile)
        heads[layer] = tuple(sorted({*heads.get(layer, ()), *listed}))
    return profile.model_copy(update={"heads": {kind: HeadSelection(grounding=heads)}})


def _parsed(choice: str, profile: ModelProfile) -> tuple[int, Sequence[int]]:
    """Layer and heads."""
    found = _HEADS.fullmatch(choice)
    if found is None:
        raise ConfigError(
            f"--heads {choice}: give LAYER or LAYER:HEAD,HEAD, counted from 0, such as 14:3,24"
        )
    layer, every_head = int(found[1]), range(profile.num_heads)
    listed = every_head if found[2] is None else [int(head) for head in found[2].split(",")]
    if layer >= profile.num_layers or max(listed) >= profile.num_heads:
        raise ConfigError(
            f"--heads {choice}: the model of profile {profile.name!r} has layers 0 to "
            f"{profile.num_layers - 1} with heads 0 to {profile.num_heads - 1}"
        )
    return layer, listed


def view_attention(
    adapter: ModelAdapter,
    image: Image.Image,
    question: str,
    kind: QuestionKind,
    *,
    max_new_tokens: int,
) -> AttentionView:
    """Let the frozen model answer, and see where.

    Args:
        adapter: the model, with a profile that has heads for the kind and says how to label.
        image: upright RGB.
        question: as data sets put it; profiles may ask for boxes instead of an answer.
        kind: whose heads to take.
        max_new_tokens: of an answer.

    Raises:
        NoAttention: if the answer is empty, has no end or is not finite, or the question cannot be
            asked; extraction reports those as such.
    """
    request = Request(image, question, kind)
    (found,) = extract_attention(adapter, [request], max_new_tokens=max_new_tokens)
    if found.grounding is None:
        raise NoAttention(_why_none(found, max_new_tokens))
    attention, letterbox = found.grounding.numpy(), found.letterbox
    sink = None if found.sink is None else found.sink.numpy()[None]
    placement = np.array([letterbox.placement])
    made = make_pseudo_labels(attention[None], sink, adapter.profile.labels, placement)
    return AttentionView(
        question=adapter.profile.extraction_question(question, kind),
        answer=found.response.strip(),
        heads=adapter.profile.heads_for(kind).grounding,
        attention=attention,
        labels=made.labels[0],
        status=made.status[0],
        box=_box_in_image(made.boxes[0], found.grid, letterbox),
        letterbox=letterbox,
    )


def _why_none(found: ExtractedAttention, max_new_tokens: int) -> str:
    if found.reason in (NOT_FINITE, PLACEHOLDER_ASKED):
        return found.reason
    if found.status is ExtractionStatus.OVERLONG_RESPONSE:
        answer = found.response
        begins = f", it begins {answer[:60]!r}" if answer.strip() else ""
        return (
            f"the answer does not end within {max_new_tokens} tokens{begins}: raise "
            "--max-new-tokens, or ask for a single word or phrase"
        )
    return f"the model answers nothing, so that there is no attention to show: {ASK_AS_TAUGHT}"


def _box_in_image(
    cells: NDArray[np.int32], grid: GridShape, letterbox: Letterbox
) -> BoxXYXY | None:
    box = None if cells[0] < 0 else letterbox.cells_to_image(GridBox(*cells.tolist()), grid)
    return box if box is not None and box.area > 0 else None
