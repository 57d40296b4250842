"""Attention extraction: the frozen model answers, and its response tokens point at the image.

For each question the model generates greedily; the softmax rows of every generated token that is
fed back (never the end token) to the image tokens are averaged over tokens, then over the heads
that the profile names. The last prompt token's row is kept apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from data_contracts.enums import ExtractionStatus, QuestionKind
from data_contracts.profiles import ModelProfile
from data_contracts.sink_rules import Heads, HiddenSignal, SinkHiddenNorm
from sdrpn_core.attention.capture import AttentionRecorder
from sdrpn_core.attention.sinks import HiddenRecorder, relative_norm, sink_map
from sdrpn_core.generation.greedy import Response, greedy_decode, prefill
from sdrpn_core.generation.prompt_batch import embedded, image_columns, pad_left
from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures, Prompt

STAGE_VERSION = 3

NOT_FINITE = (
    "the model's numbers are not finite in this precision: take bfloat16 or float32 (model.dtype)"
)
"""Whatever the model says then is no answer."""
PLACEHOLDER_ASKED = "the question holds the image placeholder"

CapturedHeads = Mapping[int, tuple[int, ...] | None]


@dataclass(frozen=True)
class Request:
    """One question about one upright RGB image."""

    image: Image.Image | None
    """Not needed where its features are at hand."""
    question: str
    kind: QuestionKind


@dataclass(frozen=True)
class ExtractedAttention:
    """What one question's response attended to; maps are (h, w) float32 on the CPU."""

    status: ExtractionStatus
    reason: str
    response: str
    num_response_tokens: int
    grid: GridShape
    letterbox: Letterbox
    kernel: str
    grounding: Tensor | None = None
    sink: Tensor | None = None
    prompt_attention: Tensor | None = None


@dataclass(frozen=True)
class CapturedBatch:
    """Responses of a batch with the attention of every captured layer and head."""

    responses: list[Response]
    response_attention: dict[int, Tensor]
    """Layer -> (N, h, C), mean over response tokens."""
    prompt_attention: dict[int, Tensor]
    """Layer -> (N, h, C), last prompt token."""
    hidden: dict[HiddenSignal, Tensor]
    """Sink signal -> (N, C), as recorded."""
    grids: list[GridShape]
    letterboxes: list[Letterbox]
    are_finite: list[bool]
    """Whether the model's numbers were, as its answer began."""

    def hidden_map(self, signal: HiddenSignal, index: int) -> Tensor:
        """One sample's sink signal from hidden states, (h, w) float32 on the CPU."""
        grid = self.grids[index]
        values = self.hidden[signal][index, : grid.num_cells]
        values = relative_norm(values) if isinstance(signal, SinkHiddenNorm) else values
        return values.reshape(grid).cpu()


@torch.inference_mode()
def capture_attention(
    adapter: ModelAdapter,
    requests: Sequence[Request],
    heads: CapturedHeads,
    *,
    max_new_tokens: int,
    hidden: Sequence[HiddenSignal] = (),
    features: Sequence[ImageFeatures] | None = None,
) -> CapturedBatch:
    """Answer a batch and record attention to each sample's image.

    Args:
        adapter: the frozen model.
        requests: questions with their images.
        heads: layer -> heads to record (None for all of a layer).
        max_new_tokens: most tokens per response.
        hidden: sink signals to record from the prompt's hidden states.
        features: the requests' images if they are encoded already, else they are encoded as for
            labels.
    """
    images = features or encoded_for_labels(adapter, [request.image for request in requests])
    prompts = extraction_prompts(adapter, requests, images)
    batch = pad_left(prompts)
    columns = image_columns(prompts, batch.offsets)
    at_prompt = AttentionRecorder.of_last_row(heads, columns, batch.embeds.shape[1])
    at_tokens = HiddenRecorder(hidden, columns)
    start = prefill(adapter, batch, at_prompt, at_tokens)
    are_finite = start.rows_finite()
    at_response = AttentionRecorder.of_last_row(heads, columns, 1)
    responses = greedy_decode(adapter, start, max_new_tokens, at_response)
    return CapturedBatch(
        responses=responses,
        response_attention=at_response.mean(),
        prompt_attention=at_prompt.mean(),
        hidden=at_tokens.maps,
        grids=[image.grid for image in images],
        letterboxes=[image.letterbox for image in images],
        are_finite=are_finite,
    )


def extract_attention(
    adapter: ModelAdapter,
    requests: Sequence[Request],
    *,
    max_new_tokens: int,
    features: Sequence[ImageFeatures] | None = None,
) -> list[ExtractedAttention]:
    """Answer a batch and reduce its attention to one grounding and one sink map per question.

    Args:
        adapter: the frozen model, with its profile.
        requests: questions with their images; kinds may be mixed.
        max_new_tokens: responses that do not end within this are reported as overlong.
        features: the requests' images if they are encoded already.

    Raises:
        UncalibratedProfile: if the profile has no heads for a question's kind.
    """
    images = features or encoded_for_labels(adapter, [request.image for request in requests])
    askable = [n for n, r in enumerate(requests) if not adapter.holds_placeholder(r.question)]
    kinds = {requests[n].kind for n in askable}
    heads = union_of_heads(adapter.profile, kinds)
    found = {}
    if askable:
        captured = capture_attention(
            adapter,
            [requests[n] for n in askable],
            heads,
            max_new_tokens=max_new_tokens,
            hidden=union_of_hidden_signals(adapter.profile, kinds),
            features=[images[n] for n in askable],
        )
        found = {
            n: reduce_attention(adapter, requests[n].kind, captured, index, heads)
            for index, n in enumerate(askable)
        }
    never_asked = (ExtractionStatus.EMPTY_RESPONSE, PLACEHOLDER_ASKED)
    return [
        found[n] if n in found else without_maps(adapter, image, "", never_asked)
        for n, image in enumerate(images)
    ]


def encoded_for_labels(
    adapter: ModelAdapter, images: Sequence[Image.Image | None]
) -> list[ImageFeatures]:
    """Features of what is asked about.

    Raises:
        ValueError: if one has no image.
    """
    given = [image for image in images if image is not None]
    if len(given) < len(images):
        raise ValueError("an image is missing: give it, or the features of all")
    return adapter.encode_images(given, for_labels=True)


def extraction_prompts(
    adapter: ModelAdapter, requests: Sequence[Request], images: Sequence[ImageFeatures]
) -> list[Prompt]:
    """Questions as extraction puts them to the model, one image each."""
    ask = adapter.profile.extraction_question
    return embedded(adapter, [ask(one.question, one.kind) for one in requests], images)


def union_of_heads(profile: ModelProfile, kinds: set[QuestionKind]) -> CapturedHeads:
    """Layer -> heads to record for questions of these kinds.

    Raises:
        UncalibratedProfile: if the profile has none for one of them.
    """
    union: dict[int, tuple[int, ...] | None] = {}
    for kind in kinds:
        for layer, heads in profile.heads_for(kind).captured.items():
            known = union.get(layer, ())
            union[layer] = (
                None if heads is None or known is None else tuple(sorted({*known, *heads}))
            )
    return union


def union_of_hidden_signals(
    profile: ModelProfile, kinds: set[QuestionKind]
) -> tuple[HiddenSignal, ...]:
    """Sink signals to record from hidden states for questions of these kinds.

    Raises:
        UncalibratedProfile: if the profile has no heads for one of them.
    """
    return tuple({s for kind in kinds for s in profile.heads_for(kind).hidden_signals})


def reduce_attention(
    adapter: ModelAdapter,
    kind: QuestionKind,
    captured: CapturedBatch,
    index: int,
    heads: CapturedHeads,
) -> ExtractedAttention:
    """One sample's grounding and sink maps, or why it has none.

    Args:
        adapter: gives the profile.
        kind: of the sample's question.
        captured: the batch it is in.
        index: its place there.
        heads: those that were recorded.
    """
    response = captured.responses[index]
    status, reason = _judge(response, captured.are_finite[index])
    grid = captured.grids[index]
    selection = adapter.profile.heads_for(kind)
    grounding = sink = prompt_attention = None
    if status is ExtractionStatus.OK:
        source = _Sample(captured, captured.response_attention, heads, index)
        grounding = source.mean_of_heads(selection.grounding)
        at_prompt = _Sample(captured, captured.prompt_attention, heads, index)
        prompt_attention = at_prompt.mean_of_heads(selection.grounding)
        sink = None if selection.sink is None else sink_map(selection.sink, source)
        maps = (grounding, sink, prompt_attention)
        if not all(one.isfinite().all() for one in maps if one is not None):
            status, reason = ExtractionStatus.EMPTY_RESPONSE, NOT_FINITE
            grounding = sink = prompt_attention = None
    return ExtractedAttention(
        status=status,
        reason=reason,
        response=response.text,
        num_response_tokens=len(response.tokens),
        grounding=grounding,
        sink=sink,
        prompt_attention=prompt_attention,
        grid=grid,
        letterbox=captured.letterboxes[index],
        kernel=adapter.decoder.kernel,
    )


def without_maps(
    adapter: ModelAdapter, image: ImageFeatures, answer: str, problem: tuple[ExtractionStatus, str]
) -> ExtractedAttention:
    """A question that gives no maps, with the answer that it has."""
    status, reason = problem
    return ExtractedAttention(
        status=status,
        reason=reason,
        response=answer,
        num_response_tokens=len(adapter.text_tokens(answer)),
        grid=image.grid,
        letterbox=image.letterbox,
        kernel=adapter.decoder.kernel,
    )


def _judge(response: Response, is_finite: bool) -> tuple[ExtractionStatus, str]:
    if not is_finite:
        return ExtractionStatus.EMPTY_RESPONSE, NOT_FINITE
    if not response.tokens:
        return ExtractionStatus.EMPTY_RESPONSE, "the first generated token ends the answer"
    if not response.is_finished:
        return (
            ExtractionStatus.OVERLONG_RESPONSE,
            f"no end within {len(response.tokens)} tokens; raise extraction.max_new_tokens",
        )
    return ExtractionStatus.OK, ""


@dataclass(frozen=True)
class _Sample:
    """One sample's maps of a batch, (h, w) float32 on the CPU: a ``SinkSource``."""

    batch: CapturedBatch
    attention: Mapping[int, Tensor]
    captured: CapturedHeads
    index: int

    def mean_of_heads(self, heads: Heads) -> Tensor:
        """Mean of the wanted (layer, head) maps."""
        chosen = []
        for layer, wanted in heads.items():
            maps, recorded = self._layer(layer), self.captured[layer]
            chosen += [maps[head if recorded is None else recorded.index(head)] for head in wanted]
        return self._as_map(torch.stack(chosen).float().mean(dim=0))

    def mean_of_layer(self, layer: int) -> Tensor:
        """Mean over all heads."""
        return self._as_map(self._layer(layer).mean(dim=0))

    def of_hidden_state(self, signal: HiddenSignal) -> Tensor:
        """As recorded."""
        return self.batch.hidden_map(signal, self.index)

    def _layer(self, layer: int) -> Tensor:
        """(heads, C)"""
        return self.attention[layer][self.index, :, : self.batch.grids[self.index].num_cells]

    def _as_map(self, values: Tensor) -> Tensor:
        return values.reshape(self.batch.grids[self.index]).float().cpu()
