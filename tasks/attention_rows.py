"""Rows of ``attention_map.v1``: what extraction found for one question, or why it found nothing."""

from dataclasses import asdict
from typing import Any

from torch import Tensor

from data_contracts.enums import ExtractionStatus
from sdrpn_core.attention.extraction import ExtractedAttention
from sdrpn_core.models.base import ModelAdapter

Row = dict[str, Any]

_CARRIED = ("question_id", "dataset", "kind", "image_uri", "image_sha256", "question", "answers")


def attention_row(question: Row, found: ExtractedAttention) -> Row:
    """What was extracted for a question."""
    box = found.letterbox
    return {name: question[name] for name in _CARRIED} | {
        "grid_height": found.grid.height,
        "grid_width": found.grid.width,
        **asdict(box),
        "response": found.response,
        "num_response_tokens": found.num_response_tokens,
        "grounding": _flat(found.grounding),
        "sink": _flat(found.sink),
        "prompt_attention": _flat(found.prompt_attention),
        "kernel": found.kernel,
        "status": found.status.value,
        "reason": found.reason,
    }


def unreadable_row(question: Row, reason: str, adapter: ModelAdapter) -> Row:
    """A question whose image cannot be read, and why."""
    sizes = ("grid_height", "grid_width", "image_width", "image_height")
    places = ("pad_left", "pad_top", "canvas_width", "canvas_height", "num_response_tokens")
    return (
        {name: question[name] for name in _CARRIED}
        | dict.fromkeys((*sizes, *places), 0)
        | dict.fromkeys(("grounding", "sink", "prompt_attention"))
        | {
            "response": "",
            "kernel": adapter.kernel,
            "status": ExtractionStatus.UNREADABLE_IMAGE.value,
            "reason": reason,
        }
    )


def _flat(values: Tensor | None) -> list[float] | None:
    return None if values is None else values.flatten().tolist()
