"""Answers with the zoom: what is known before the first token, whole answers, and their pieces."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_contracts.enums import ZoomDecision
from sdrpn_core.clock import synchronized_seconds
from sdrpn_core.decoding.state import Decoding
from sdrpn_core.generation.greedy import Response, decode_steps, make_response, make_responses
from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.regions import Region
from sdrpn_core.zoom.gate import Zoom


@dataclass(frozen=True)
class ZoomAnswer:
    """Answer to one question."""

    text: str
    regions: tuple[Region, ...]
    """What was zoomed into, in pixels of the upright image; empty if the image alone answered."""
    roi_map: NDArray[np.float32] = field(repr=False)
    """(h, w) probability that a cell matters to the question."""
    decision: ZoomDecision
    """Whether the second stage answered, or why it was skipped."""
    num_crop_tokens: int
    """Tokens of crops that the decoder read beside the image's; 0 if the image alone answered."""
    seconds: dict[str, float]
    """This question's share of its batch's wall-clock time, by phase."""

    @property
    def boxes(self) -> tuple[BoxXYXY, ...]:
        """What was cropped, in pixels of the upright image."""
        return tuple(region.box for region in self.regions)

    @property
    def used_crop(self) -> bool:
        """Whether the second stage answered, with crops in context."""
        return self.decision is ZoomDecision.ZOOMED


@dataclass(frozen=True)
class TextPiece:
    """The next bit of one answer."""

    index: int
    """Which question."""
    text: str
    answer: ZoomAnswer | None = None
    """The whole answer, with its last piece."""


@dataclass(frozen=True)
class StartedBatch:
    """Questions that run together, just before their first token."""

    indices: tuple[int, ...]
    """Place of each question in the call."""
    zooms: tuple[Zoom, ...]
    roi_maps: tuple[NDArray[np.float32], ...]
    num_crop_tokens: tuple[int, ...]
    start: Decoding
    clock: "PhaseClock"

    def answer(self, row: int, response: Response) -> ZoomAnswer:
        """The answer of one row, with the time spent so far."""
        zoom = self.zooms[row]
        return ZoomAnswer(
            text=response.text,
            regions=zoom.regions,
            roi_map=self.roi_maps[row],
            decision=zoom.decision,
            num_crop_tokens=self.num_crop_tokens[row],
            seconds=dict(self.clock.seconds),
        )


class PhaseClock:
    """Wall-clock seconds per question by phase."""

    def __init__(self, num_questions: int, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._num_questions = num_questions
        self._device = device
        self._start = time.perf_counter()

    def go_on(self) -> None:
        """Leave out the time since the last lap: it was somebody else's."""
        self._start = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to a phase."""
        now = synchronized_seconds(self._device)
        spent = (now - self._start) / self._num_questions
        self.seconds[phase] = self.seconds.get(phase, 0.0) + spent
        self._start = now


class CallerLeft(Exception):
    """Ends the work of a thread whose result nobody waits for; nobody is told."""


def whole_answers(
    adapter: ModelAdapter, batch: StartedBatch, max_new_tokens: int, has_left: Event
) -> dict[int, ZoomAnswer]:
    """A batch's answers, by the place of their questions in the call.

    Args:
        adapter: the model.
        batch: used up.
        max_new_tokens: most tokens per answer.
        has_left: looked at between tokens.

    Raises:
        CallerLeft: once ``has_left`` is set.
    """
    steps = decode_steps(adapter, batch.start, max_new_tokens)
    responses = make_responses(adapter, _while_awaited(steps, has_left))
    batch.clock.lap("decode")
    return {
        index: batch.answer(row, response)
        for row, (index, response) in enumerate(zip(batch.indices, responses, strict=True))
    }


def _while_awaited(steps: Iterator[Tensor], has_left: Event) -> Iterator[Tensor]:
    for step in steps:
        if has_left.is_set():
            raise CallerLeft
        yield step


def stream_answers(
    adapter: ModelAdapter, batch: StartedBatch, max_new_tokens: int
) -> Iterator[TextPiece]:
    """Pieces of a batch's answers, one step at a time; the last piece carries the whole answer.

    The batch's clock stands still while a piece is out: what its taker does is no decoding.
    """
    for piece in _pieces(adapter, batch, max_new_tokens):
        yield piece
        batch.clock.go_on()


def _pieces(adapter: ModelAdapter, batch: StartedBatch, max_new_tokens: int) -> Iterator[TextPiece]:
    """The pieces; a lap of the clock ends just before each."""
    rows: list[list[int]] = [[] for _ in batch.indices]
    sent = ["" for _ in rows]
    for step in decode_steps(adapter, batch.start, max_new_tokens):
        for row, token in enumerate(step.tolist()):
            if rows[row] and rows[row][-1] in adapter.eos_ids:
                continue
            rows[row].append(token)
            if token in adapter.eos_ids:
                response = make_response(adapter, rows[row])
                batch.clock.lap("decode")
                rest = response.text[len(sent[row]) :]
                yield TextPiece(batch.indices[row], rest, batch.answer(row, response))
            elif fresh := _settled_text(adapter, rows[row])[len(sent[row]) :]:
                sent[row] += fresh
                batch.clock.lap("decode")
                yield TextPiece(batch.indices[row], fresh)
    for row, tokens in enumerate(rows):
        response = make_response(adapter, tokens)
        if not response.is_finished:
            batch.clock.lap("decode")
            rest = response.text[len(sent[row]) :]
            yield TextPiece(batch.indices[row], rest, batch.answer(row, response))


def _settled_text(adapter: ModelAdapter, tokens: Sequence[int]) -> str:
    """The text that no later token changes: without a last character that is not whole yet.

    Where tokens stand for single bytes, a run of them is no text at all if its end is none.
    """
    length = len(tokens)
    while length and tokens[length - 1] in adapter.byte_ids:
        length -= 1
    return adapter.decode_tokens(tokens[:length]).rstrip("\ufffd")
