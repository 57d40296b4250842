"""Attention of given answers: the data set's own responses are put in the model's mouth.

No generation: all answered turns of a conversation are read in one forward pass, which stops after
the deepest layer that the profile's heads need. No column sees text that follows it, so each turn's
rows are those that the model would have had while writing that answer after the turns before it.

Shape legend: N sequences, G groups of queries, Q recorded queries, C image cells.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data_contracts.sink_rules import HiddenSignal
from sdrpn_core.attention.capture import GroupedAttentionRecorder
from sdrpn_core.attention.sinks import HiddenRecorder
from sdrpn_core.extraction.conversation_layout import (
    Conversation,
    PlacedAnswer,
    TurnSequence,
    lay_out_turns,
)
from sdrpn_core.extraction.generated_answers import (
    CapturedBatch,
    CapturedHeads,
    ExtractedAttention,
    encoded_for_labels,
    reduce_attention,
    union_of_heads,
    union_of_hidden_signals,
    without_maps,
)
from sdrpn_core.generation.greedy import Response
from sdrpn_core.generation.prompt_batch import image_columns, pad_left
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures


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
    """
    images = features or encoded_for_labels(adapter, [talk.image for talk in conversations])
    sequences: list[TurnSequence] = []
    rows: dict[tuple[int, int], ExtractedAttention] = {}
    for index, (talk, image) in enumerate(zip(conversations, images, strict=True)):
        own, problems = lay_out_turns(adapter, talk, image, index, max_tokens)
        sequences += own
        for turn, problem in problems.items():
            answer = talk.turns[turn].answer
            rows[index, turn] = without_maps(adapter, image, answer, problem)
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
    sequences: Sequence[TurnSequence],
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
        are_finite=[True] * len(turns),  # nothing is said; maps that are not are found out later
    )
    return {
        (talk, answer.turn): reduce_attention(
            adapter, conversations[talk].kind, captured, index, heads
        )
        for index, (talk, answer) in enumerate(turns)
    }


def _forward(
    adapter: ModelAdapter,
    sequences: Sequence[TurnSequence],
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
    deepest = max(*heads, *(signal.layer for signal in hidden), 0)
    adapter.decoder.run(batch.as_input(), range(deepest + 1), recorder=recorder, observer=at_tokens)
    return recorder, at_tokens


def _queries(sequences: Sequence[TurnSequence], offsets: Sequence[int]) -> tuple[Tensor, Tensor]:
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


def _response(answer: PlacedAnswer, conversation: Conversation) -> Response:
    return Response(answer.tokens, conversation.turns[answer.turn].answer, is_finished=True)


def _size(sequence: TurnSequence) -> int:
    return len(sequence.answers)
