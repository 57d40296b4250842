"""What calibration looks at: questions with true boxes, and what the model does with them.

Every head's attention, and the hidden states' sink signals of every layer.

Shape legend: N questions, L layers, H heads, h x w grid cells, C = h * w.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_contracts.calibration import CalibrationSettings
from data_contracts.enums import QuestionKind
from data_contracts.errors import SdrpnError
from data_contracts.sink_rules import Heads, HiddenSignal, SinkDimensions, SinkHiddenNorm
from sdrpn_core.evaluation.roi_quality import true_cells, true_coverage
from sdrpn_core.extraction.generated_answers import (
    NOT_FINITE,
    CapturedBatch,
    Request,
    capture_attention,
)
from sdrpn_core.geometry import BoxXYXY, GridShape, Letterbox
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.reference.backgrounds import photograph_folder
from sdrpn_core.reference.scenes import make_scene
from sdrpn_core.reference.vocabulary import SHORT_ANSWER_SUFFIX

OVERLAP = 0.05
"""Share of a cell that the true boxes must cover more than, for the cell to overlap with them."""

Progress = Callable[[int, int], None]
"""Function that is called with (units of work done, units in all)."""
Head = tuple[int, int]
"""(layer, head)."""


class CalibrationError(SdrpnError):
    """Calibration cannot reach a result; the message says what to change."""


@dataclass(frozen=True)
class CalibrationExample:
    """One question about one image, with the region that answers it."""

    request: Request
    true_boxes: tuple[BoxXYXY, ...]
    image_index: int
    """Number of the image; questions about the same image have the same."""


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Attention of every layer and head to the image, for questions that got a whole answer."""

    response: Tensor
    """(N, L, H, h, w) float32, mean over answer tokens."""
    layers: tuple[int, ...]
    """Which layers of the model these are, L of them: those that have heads."""
    inside: NDArray[np.bool_]
    """(N, h, w) cells of the true boxes, by the centre rule of ``roi_quality``."""
    overlapping: NDArray[np.bool_]
    """(N, h, w) cells of which the true boxes cover more than ``OVERLAP``: on small grids a cell
    whose centre lies just outside still shows the object."""
    image_sizes: NDArray[np.int64] | None
    """(N, 4) ``Letterbox.placement`` of each; None where no image was padded."""
    kinds: tuple[QuestionKind, ...]
    image_indices: NDArray[np.int64]
    """(N,) number of each question's image."""
    example_indices: NDArray[np.int64]
    """(N,) position of each question among the examples."""
    num_unusable: int
    """Questions left out because the answer was empty, did not end, or was of no finite numbers."""
    hidden: Mapping[HiddenSignal, Tensor] = field(default_factory=dict)
    """Sink signal of the hidden states -> (N, h, w) float32."""

    def mean_of_heads(self, heads: Heads) -> Tensor:
        """(N, h, w) mean attention of heads, as extraction reduces it."""
        chosen = [(layer, head) for layer, many in heads.items() for head in many]
        return self.response[:, *self.places(chosen)].mean(dim=1)

    def mean_of_layer(self, layer: int) -> Tensor:
        """(N, h, w) mean attention of a layer."""
        return self.response[:, self.layers.index(layer)].mean(dim=1)

    def places(self, heads: Iterable[Head]) -> tuple[list[int], list[int]]:
        """Indices of (layer, head) pairs along the second and third axis of ``response``."""
        layers, heads_of_layers = zip(*heads, strict=True)
        return [self.layers.index(layer) for layer in layers], list(heads_of_layers)

    @property
    def heads(self) -> list[Head]:
        """(layer, head) of every head, layer by layer."""
        return list(product(self.layers, range(self.response.shape[2])))

    def of_hidden_state(self, signal: HiddenSignal) -> Tensor:
        """(N, h, w), one of ``hidden``."""
        return self.hidden[signal]

    @property
    def num_questions(self) -> int:
        """N."""
        return len(self.kinds)

    @property
    def grid(self) -> GridShape:
        """(h, w)."""
        return GridShape(*self.inside.shape[1:])

    def of_kind(self, kind: QuestionKind) -> NDArray[np.bool_]:
        """(N,) questions of one kind."""
        return np.array([known is kind for known in self.kinds])

    @cached_property
    def halves(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(N,) questions of two thirds of the images, in two halves: what both gain from is taken.

        With hundreds of heads, some always look good on the images they were picked on.
        """
        return self._third == 0, self._third == 1

    @cached_property
    def unseen(self) -> NDArray[np.bool_]:
        """(N,) questions about the other images: nothing is chosen on them, all is reported."""
        is_unseen: NDArray[np.bool_] = self._third == 2
        return is_unseen

    @cached_property
    def _third(self) -> NDArray[np.int64]:
        thirds = np.zeros(self.num_questions, dtype=np.int64)
        for kind in set(self.kinds):
            rows = self.of_kind(kind)
            _, order = np.unique(self.image_indices[rows], return_inverse=True)
            thirds[rows] = order % 3
        return thirds


def scene_examples(settings: CalibrationSettings) -> Iterator[CalibrationExample]:
    """Generate scenes and ask about the objects in them; equal settings give equal examples.

    Raises:
        ScenesUnavailable: if scenes cannot be generated on this machine.
    """
    photograph_folder()
    for index in range(settings.num_scenes):
        scene = make_scene(
            settings.seed + index, print_scale=settings.print_scale, size=settings.image_size
        )
        kind = QuestionKind(scene.question_kind)
        for turn in scene.turns[: settings.questions_per_scene]:
            yield CalibrationExample(
                request=Request(scene.image, turn.question + SHORT_ANSWER_SUFFIX, kind),
                true_boxes=(turn.box,),
                image_index=index,
            )


def capture_maps(
    adapter: ModelAdapter,
    examples: Sequence[CalibrationExample],
    *,
    max_new_tokens: int,
    batch_size: int,
    dimensions: tuple[int, ...] = (),
    on_progress: Progress | None = None,
) -> AttentionMaps:
    """Let the model answer and keep the attention of every layer and head.

    Memory: 4 bytes per question, layer, head and cell (LLaVA-1.5-7B: 2.4 MB a question).
    The hidden states' sink signals of every layer add as much as two heads per layer.

    Args:
        adapter: the frozen model; its profile needs no heads.
        examples: questions with true boxes.
        max_new_tokens: answers that do not end within this are left out, as extraction does.
        batch_size: questions per forward pass.
        dimensions: sink dimensions of the hidden states; none if there are none.
        on_progress: told after every batch.

    Raises:
        CalibrationError: if no answer is usable or grids differ.
    """
    every_head = dict.fromkeys(adapter.decoder.attention_layers)
    usable = _UsableAnswers(hidden_signals(adapter.profile.num_layers, dimensions))
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        captured = capture_attention(
            adapter,
            [e.request for e in batch],
            every_head,
            max_new_tokens=max_new_tokens,
            hidden=usable.signals,
        )
        usable.add(captured, start)
        if on_progress is not None:
            on_progress(start + len(batch), len(examples))
    _check_usable(usable, len(examples), max_new_tokens)
    return usable.attention_maps(examples, tuple(every_head))


class _UsableAnswers:
    """Gathers what was captured of whole answers, batch by batch."""

    def __init__(self, signals: Sequence[HiddenSignal]) -> None:
        self.signals = signals
        self.indices: list[int] = []
        """Positions of the answered questions among the examples."""
        self.num_not_finite = 0
        self.num_empty = 0
        self.num_cut_off = 0
        self.grids: list[GridShape] = []
        self._letterboxes: list[Letterbox] = []
        self._responses: list[Tensor] = []
        self._hidden: dict[HiddenSignal, list[Tensor]] = {signal: [] for signal in signals}

    def add(self, captured: CapturedBatch, start: int) -> None:
        """Keep the answers of a batch that are neither empty nor cut off, and finite throughout.

        Args:
            captured: the batch.
            start: position of its first question among the examples.
        """
        for row, answer in enumerate(captured.responses):
            if not captured.are_finite[row]:
                self.num_not_finite += 1
                continue
            if not answer.is_finished:
                self.num_cut_off += 1
                continue
            if not answer.tokens:
                self.num_empty += 1
                continue
            grid = captured.grids[row]
            response = _stacked(captured.response_attention, row, grid)
            if not response.isfinite().all():
                self.num_not_finite += 1
                continue
            self.indices.append(start + row)
            self.grids.append(grid)
            self._letterboxes.append(captured.letterboxes[row])
            self._responses.append(response)
            for signal, maps in self._hidden.items():
                maps.append(captured.hidden_map(signal, row))

    def attention_maps(
        self, examples: Sequence[CalibrationExample], layers: tuple[int, ...]
    ) -> AttentionMaps:
        """All that was kept, with the true cells; grids must be equal.

        Args:
            examples: all that were asked.
            layers: that were captured.
        """
        grid = self.grids[0]
        answered = [examples[index] for index in self.indices]
        truth = [(e.true_boxes, box) for e, box in zip(answered, self._letterboxes, strict=True)]
        return AttentionMaps(
            response=torch.stack(self._responses),
            layers=layers,
            inside=np.stack([true_cells(boxes, letterbox, grid) for boxes, letterbox in truth]),
            overlapping=np.stack(
                [true_coverage(boxes, letterbox, grid) > OVERLAP for boxes, letterbox in truth]
            ),
            image_sizes=_padded_sizes(self._letterboxes),
            kinds=tuple(example.request.kind for example in answered),
            image_indices=np.array([example.image_index for example in answered]),
            example_indices=np.array(self.indices),
            num_unusable=len(examples) - len(answered),
            hidden={signal: torch.stack(found) for signal, found in self._hidden.items()},
        )


def hidden_signals(num_layers: int, dimensions: tuple[int, ...]) -> list[HiddenSignal]:
    """Sink signals of the hidden state that enters each layer, those of the embeddings included."""
    norms: list[HiddenSignal] = [SinkHiddenNorm(layer=layer) for layer in range(num_layers)]
    if not dimensions:
        return norms
    return norms + [SinkDimensions(layer=i, dimensions=dimensions) for i in range(num_layers)]


def _stacked(attention: dict[int, Tensor], row: int, grid: GridShape) -> Tensor:
    """One question's maps, (L, H, h, w) on the CPU."""
    layers = [attention[layer][row, :, : grid.num_cells] for layer in sorted(attention)]
    stacked = torch.stack(layers).float().cpu()
    return stacked.reshape(*stacked.shape[:2], *grid)


def _padded_sizes(letterboxes: Sequence[Letterbox]) -> NDArray[np.int64] | None:
    placements = np.array([box.placement for box in letterboxes], dtype=np.int64)
    return placements if (placements[:, :2] != placements[:, 2:]).any() else None


def _check_usable(usable: _UsableAnswers, num_asked: int, max_new_tokens: int) -> None:
    num_kept, grids = len(usable.indices), set(usable.grids)
    # Below half, what is left says more about how answers end than about where they look.
    if num_kept < max(num_asked / 2, 6):
        num_overflown = usable.num_not_finite
        if 2 * num_overflown > num_asked - num_kept:
            raise CalibrationError(f"{num_overflown} of {num_asked} questions: {NOT_FINITE}")
        raise CalibrationError(
            f"only {num_kept} of {num_asked} answers can be used: {usable.num_empty} were empty, "
            f"{usable.num_cut_off} had no end after {max_new_tokens} tokens; change the prompt so "
            "that the model answers in a few words, or raise max_new_tokens"
        )
    if len(grids) > 1:
        raise CalibrationError(
            f"the model's grid differs from image to image ({len(grids)} grids): set image_size so "
            "that every scene gets the same one"
        )
