"""Attention of given answers: the data set's own responses are put in the model's mouth.

No generation: all answered turns of a conversation are read in one forward pass, which stops after
the deepest layer that the profile's heads need. Attention is causal, so each turn's rows are those
that the model would have had while writing that answer after the turns before it.

Shape legend: N sequences, G groups of queries, Q recorded queries, C image cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from data_contracts.enums import ExtractionStatus, QuestionKind
from data_contracts.sink_rules import HiddenSignal
from sdrpn_core.attention_capture import GroupedAttentionRecorder
from sdrpn_core.extraction import (
    CapturedBatch,
    CapturedHeads,
    ExtractedAttention,
    reduce_attention,
    union_of_heads,
    union_of_hidden_signals,
)
from sdrpn_core.generation import Response, image_columns, pad_left
from sdrpn_core.masks import attention_mask
from sdrpn_core.models.base import ModelAdapter, ModelError
from sdrpn_core.models.prompts import ImageFeatures, Prompt
from sdrpn_core.sinks import HiddenRecorder


@dataclass(frozen=True)
class Turn:
    """A question and the answer that the data set gives to it; an empty one if it gives none."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Turns about one upright RGB image, in order."""

    image: Image.Image
    turns: tuple[Turn, ...]
    kind: QuestionKind


@dataclass(frozen=True)
class _Answer:
    """Where an answer lies in its sequence."""

    turn: int
    column: int
    """Of its first token."""
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class _Sequence:
    """One unpadded input of the decoder: prompt, answer, next question, answer, ..."""

    conversation: int
    prompt: Prompt
    answers: tuple[_Answer, ...]


_Problem = tuple[ExtractionStatus, str]


@torch.inference_mode()
def extract_from_answers(
    adapter: ModelAdapter,
    conversations: Sequence[Conversation],
    *,
    max_tokens: int,
    features: Sequence[ImageFeatures] | None = None,
) -> list[list[ExtractedAttention]]:
    """Grounding and sink maps of every turn's given answer.

    Questions are put as they stand: an instruction that the profile gives for extraction asks for
    other answers than these. A profile without ``next_turn`` does not say how turns follow each
    other: each is then asked on its own.

    Args:
        adapter: the frozen model, with its profile.
        conversations: a batch; kinds, sizes and numbers of turns may be mixed.
        max_tokens: turns that end beyond this length of their conversation, image included, are
            reported as overlong; those before them are not affected.
        features: the conversations' images if they are encoded already, else they are encoded as
            for labels.

    Returns:
        One entry per turn of each conversation, in order; turns without an answer say so.

    Raises:
        UncalibratedProfile: if the profile has no heads for a kind.
        ModelError: if a question holds the image placeholder.
    """
    images = features or adapter.encode_images(
        [talk.image for talk in conversations], for_labels=True
    )
    sequences: list[_Sequence] = []
    rows: dict[tuple[int, int], ExtractedAttention] = {}
    for index, (talk, image) in enumerate(zip(conversations, images, strict=True)):
        own, problems = _read(adapter, talk, image, index, max_tokens)
        sequences += own
        for turn, problem in problems.items():
            answer = talk.turns[turn].answer
            rows[index, turn] = _without_maps(adapter, image, answer, problem)
    if sequences:
        rows |= _attend(adapter, conversations, images, sequences)
    return [
        [rows[index, turn] for turn in range(len(talk.turns))]
        for index, talk in enumerate(conversations)
    ]


def _attend(
    adapter: ModelAdapter,
    conversations: Sequence[Conversation],
    images: Sequence[ImageFeatures],
    sequences: Sequence[_Sequence],
) -> dict[tuple[int, int], ExtractedAttention]:
    """(conversation, turn) -> maps, of every answer of the sequences."""
    kinds = {conversations[sequence.conversation].kind for sequence in sequences}
    heads = union_of_heads(adapter.profile, kinds)
    recorder, at_tokens = _forward(
        adapter, sequences, heads, union_of_hidden_signals(adapter.profile, kinds)
    )
    places = [(number, place) for number, s in enumerate(sequences) for place in range(_size(s))]
    turns = [(sequences[number].conversation, sequences[number].answers[p]) for number, p in places]
    captured = CapturedBatch(
        responses=[_response(answer, conversations[talk]) for talk, answer in turns],
        response_attention=_groups(recorder, [(n, 2 * place) for n, place in places]),
        prompt_attention=_groups(recorder, [(n, 2 * place + 1) for n, place in places]),
        hidden={
            signal: values[[number for number, _ in places]]
            for signal, values in at_tokens.maps.items()
        },
        grids=[images[talk].grid for talk, _ in turns],
        letterboxes=[images[talk].letterbox for talk, _ in turns],
    )
    return {
        (talk, answer.turn): reduce_attention(
            adapter, conversations[talk].kind, captured, index, heads
        )
        for index, (talk, answer) in enumerate(turns)
    }


def _forward(
    adapter: ModelAdapter,
    sequences: Sequence[_Sequence],
    heads: CapturedHeads,
    hidden: Sequence[HiddenSignal],
) -> tuple[GroupedAttentionRecorder, HiddenRecorder]:
    """Run the layers up to the deepest that is looked at over all sequences at once."""
    batch = pad_left([sequence.prompt for sequence in sequences])
    columns = image_columns([sequence.prompt for sequence in sequences], batch.offsets)
    rows, weights = _queries(sequences, batch.offsets)
    recorder = GroupedAttentionRecorder(
        heads,
        columns,
        rows.to(columns.device),
        torch.ones(rows.shape, device=columns.device),
        group_weights_NGQ=weights.to(columns.device),
    )
    at_tokens = HiddenRecorder(hidden, columns)
    adapter.forward_layers(
        batch.embeds,
        0,
        max(*heads, *(signal.layer for signal in hidden), 0) + 1,
        mask=attention_mask(batch.key_mask, batch.embeds.shape[1]),
        position_ids=batch.position_ids,
        deepstack=batch.deepstack,
        recorder=recorder,
        observer=at_tokens,
    )
    return recorder, at_tokens


def _queries(sequences: Sequence[_Sequence], offsets: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(N, Q) columns to record and (N, G, Q) their weights.

    Answer ``i`` of a sequence has two groups: 2 i is the mean over its tokens, 2 i + 1 the token
    before them, which asks for the answer.
    """
    num_queries = max(sum(len(a.tokens) + 1 for a in s.answers) for s in sequences)
    num_groups = 2 * max(_size(s) for s in sequences)
    rows = torch.zeros(len(sequences), num_queries, dtype=torch.long)
    weights = torch.zeros(len(sequences), num_groups, num_queries)
    for number, (sequence, offset) in enumerate(zip(sequences, offsets, strict=True)):
        start = 0
        for place, answer in enumerate(sequence.answers):
            end = start + len(answer.tokens) + 1
            first = offset + answer.column - 1
            rows[number, start:end] = torch.arange(first, first + end - start)
            weights[number, 2 * place, start + 1 : end] = 1 / len(answer.tokens)
            weights[number, 2 * place + 1, start] = 1
            start = end
    return rows, weights


def _groups(
    recorder: GroupedAttentionRecorder, places: Sequence[tuple[int, int]]
) -> dict[int, Tensor]:
    """Layer -> (M, h, C) of the chosen (sequence, group) pairs."""
    return {
        layer: torch.stack([sums[number, :, group] for number, group in places])
        for layer, sums in recorder.sums.items()
    }


def _read(
    adapter: ModelAdapter,
    conversation: Conversation,
    image: ImageFeatures,
    index: int,
    max_tokens: int,
) -> tuple[list[_Sequence], dict[int, _Problem]]:
    """A conversation's sequences, and what is wrong with the turns that are in none."""
    problems: dict[int, _Problem] = {}
    sequences: list[_Sequence] = []
    prompt: Prompt | None = None
    answers: list[_Answer] = []
    overlong: _Problem | None = None
    for number, turn in enumerate(conversation.turns):
        tokens = _text_tokens(adapter, turn.answer)
        if problem := _problem_of(adapter, tokens) or overlong:
            problems[number] = problem
            continue
        asked = _ask(adapter, prompt, turn.question, image)
        length = asked.embeds.shape[0]
        if length + len(tokens) > max_tokens:
            problems[number] = _overlong(length + len(tokens), max_tokens)
            if adapter.profile.next_turn is not None:
                overlong = problems[number]  # what follows has this turn before it
            continue
        answers.append(_Answer(number, length, tokens))
        prompt = _append(adapter, asked, tokens)
        if adapter.profile.next_turn is None:
            sequences.append(_Sequence(index, prompt, tuple(answers)))
            prompt, answers = None, []
    if prompt is not None:
        sequences.append(_Sequence(index, prompt, tuple(answers)))
    return sequences, problems


def _ask(
    adapter: ModelAdapter, before: Prompt | None, question: str, image: ImageFeatures
) -> Prompt:
    """The prompt up to where the answer to this question begins."""
    if before is None:
        return adapter.embed_prompt(question, [image])
    assert adapter.profile.next_turn is not None
    text = adapter.profile.next_turn.replace("{question}", question)
    tokens = _text_tokens(adapter, text)
    if adapter.image_token_id in tokens:
        raise ModelError(f"the question contains the image placeholder: {question!r}")
    return _append(adapter, before, tokens)


def _append(adapter: ModelAdapter, prompt: Prompt, tokens: Sequence[int]) -> Prompt:
    """The prompt followed by text, at the positions that generated tokens would have."""
    ids = torch.tensor(tokens, device=adapter.device)
    start = int(prompt.position_ids.max()) + 1
    positions = torch.arange(start, start + len(tokens), device=adapter.device)
    following = adapter.text_positions(positions[None])[..., 0, :]
    return replace(
        prompt,
        embeds=torch.cat([prompt.embeds, adapter.embedding(ids)]),
        deepstack=pad(prompt.deepstack, (0, 0, 0, len(tokens))),
        position_ids=torch.cat([prompt.position_ids, following], dim=-1),
    )


def _text_tokens(adapter: ModelAdapter, text: str) -> tuple[int, ...]:
    return tuple(adapter.tokenizer(text, add_special_tokens=False).input_ids)


def _problem_of(adapter: ModelAdapter, tokens: Sequence[int]) -> _Problem | None:
    if not tokens:
        return ExtractionStatus.EMPTY_RESPONSE, "the data set gives no answer to this turn"
    if adapter.image_token_id in tokens:
        return ExtractionStatus.EMPTY_RESPONSE, "the given answer holds the image placeholder"
    return None


def _overlong(length: int, max_tokens: int) -> _Problem:
    return (
        ExtractionStatus.OVERLONG_RESPONSE,
        f"the conversation grows to {length} tokens, more than {max_tokens}; "
        "raise extraction.max_conversation_tokens",
    )


def _response(answer: _Answer, conversation: Conversation) -> Response:
    return Response(answer.tokens, conversation.turns[answer.turn].answer, is_finished=True)


def _size(sequence: _Sequence) -> int:
    return len(sequence.answers)


def _without_maps(
    adapter: ModelAdapter, image: ImageFeatures, answer: str, problem: _Problem
) -> ExtractedAttention:
    status, reason = problem
    return ExtractedAttention(
        status=status,
        reason=reason,
        response=answer,
        num_response_tokens=len(_text_tokens(adapter, answer)),
        grounding=None,
        sink=None,
        prompt_attention=None,
        grid=image.grid,
        letterbox=image.letterbox,
        kernel=adapter.kernel,
    )
