"""Rows of ``attention_map.v1``: what extraction found for one question, or why it found nothing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict

from torch import Tensor

from data_contracts.enums import ExtractionStatus
from sdrpn_core.extraction.generated_answers import ExtractedAttention
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures
from tasks.artifacts.device_memory import BatchSize
from tasks.artifacts.store import ArtifactStore
from tasks.opened_images import Opened, Row, Turns, encoded, opened_batches

Extract = Callable[
    [Sequence[Turns], Sequence[ImageFeatures]], Sequence[Sequence[ExtractedAttention]]
]
"""(questions, features of their images) -> what was found, by turn."""

_CARRIED = ("question_id", "dataset", "kind", "image_uri", "image_sha256", "question", "answers")


def attention_rows(
    store: ArtifactStore,
    adapter: ModelAdapter,
    asked: Sequence[Turns],
    batch_size: int,
    extract: Extract,
    fitting: BatchSize,
) -> Iterator[Row]:
    """One row for every question, whether its image can be read or not.

    Args:
        store: reads image URIs.
        adapter: the frozen model.
        asked: questions, those about one image together.
        batch_size: images opened at a time.
        extract: finds what is attended to.
        fitting: images extracted at a time.
    """

    def extracted(part: Sequence[Opened]) -> Sequence[Sequence[ExtractedAttention]]:
        return extract([turns for turns, _ in part], encoded(adapter, part))

    with closing(opened_batches(store, adapter, asked, batch_size)) as batches:
        for batch in batches:
            for turns, reason in batch.unreadable:
                yield from (_unreadable_row(turn, reason, adapter) for turn in turns)
            if not batch.readable:
                continue
            found = fitting.in_batches(adapter.device, batch.readable, extracted)
            for (turns, _), maps in zip(batch.readable, found, strict=True):
                yield from (_attention_row(*pair) for pair in zip(turns, maps, strict=True))


def _attention_row(question: Row, found: ExtractedAttention) -> Row:
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


def _unreadable_row(question: Row, reason: str, adapter: ModelAdapter) -> Row:
    """A question whose image cannot be read, and why."""
    sizes = ("grid_height", "grid_width", "image_width", "image_height")
    places = ("pad_left", "pad_top", "canvas_width", "canvas_height", "num_response_tokens")
    return (
        {name: question[name] for name in _CARRIED}
        | dict.fromkeys((*sizes, *places), 0)
        | dict.fromkeys(("grounding", "sink", "prompt_attention"))
        | {
            "response": "",
            "kernel": adapter.decoder.kernel,
            "status": ExtractionStatus.UNREADABLE_IMAGE.value,
            "reason": reason,
        }
    )


def _flat(values: Tensor | None) -> list[float] | None:
    return None if values is None else values.flatten().tolist()
