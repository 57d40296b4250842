"""Conversations laid out as inputs of the decoder: prompt, answer, next question, answer, ...

A turn that cannot be laid out stays out, with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch.nn.functional import pad

from data_contracts.enums import ExtractionStatus, QuestionKind
from sdrpn_core.extraction.generated_answers import PLACEHOLDER_ASKED
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures, Prompt


@dataclass(frozen=True)
class Turn:
    """A question and the answer that the data set gives to it; an empty one if it gives none."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Turns about one upright RGB image, in order."""

    image: Image.Image | None
    """Not needed where its features are at hand."""
    turns: tuple[Turn, ...]
    kind: QuestionKind


@dataclass(frozen=True)
class PlacedAnswer:
    """Where an answer lies in its sequence."""

    turn: int
    column: int
    """Of its first token."""
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class TurnSequence:
    """One unpadded input of the decoder: prompt, answer, next question, answer, ..."""

    conversation: int
    prompt: Prompt
    answers: tuple[PlacedAnswer, ...]


TurnProblem = tuple[ExtractionStatus, str]
"""Why a turn is in no sequence."""


def lay_out_turns(
    adapter: ModelAdapter,
    conversation: Conversation,
    image: ImageFeatures,
    index: int,
    max_tokens: int,
) -> tuple[list[TurnSequence], dict[int, TurnProblem]]:
    """A conversation's sequences, and what is wrong with the turns that are in none.

    Args:
        adapter: the frozen model, with its profile.
        conversation: what to lay out.
        image: its image, encoded.
        index: what the sequences say which conversation they are of.
        max_tokens: turns that end beyond this length are overlong.
    """
    problems: dict[int, TurnProblem] = {}
    sequences: list[TurnSequence] = []
    prompt: Prompt | None = None
    answers: list[PlacedAnswer] = []
    overlong: TurnProblem | None = None
    profile = adapter.profile
    for number, turn in enumerate(conversation.turns):
        template = profile.prompt if prompt is None else profile.next_turn
        assert template is not None  # else no prompt is kept for a next turn
        tokens = adapter.answer_tokens(turn.answer, template)
        if problem := _problem_of(adapter, turn.question, tokens) or overlong:
            problems[number] = problem
            continue
        asked = _ask(adapter, prompt, turn.question, image)
        length = asked.embeds.shape[0]
        if length + len(tokens) > max_tokens:
            problems[number] = _overlong(length + len(tokens), max_tokens)
            if profile.next_turn is not None:
                overlong = problems[number]  # what follows has this turn before it
            continue
        answers.append(PlacedAnswer(number, length, tokens))
        prompt = _append(adapter, asked, tokens)
        if profile.next_turn is None:
            sequences.append(TurnSequence(index, prompt, tuple(answers)))
            prompt, answers = None, []
    if prompt is not None:
        sequences.append(TurnSequence(index, prompt, tuple(answers)))
    return sequences, problems


def _ask(
    adapter: ModelAdapter, before: Prompt | None, question: str, image: ImageFeatures
) -> Prompt:
    """The prompt up to where the answer to this question begins."""
    if before is None:
        return adapter.embed_prompt(question, [image])
    assert adapter.profile.next_turn is not None
    text = adapter.profile.next_turn.replace("{question}", question)
    return _append(adapter, before, adapter.text_tokens(text))


def _append(adapter: ModelAdapter, prompt: Prompt, tokens: Sequence[int]) -> Prompt:
    """The prompt followed by text, at the positions that generated tokens would have."""
    ids = torch.tensor(tokens, device=adapter.device)
    start = int(prompt.position_ids.max()) + 1
    positions = torch.arange(start, start + len(tokens), device=adapter.device)
    following = adapter.text_positions(positions[None])[..., 0, :]
    return replace(
        prompt,
        embeds=torch.cat([prompt.embeds, adapter.decoder.embedding(ids)]),
        deepstack=pad(prompt.deepstack, (0, 0, 0, len(tokens))),
        position_ids=torch.cat([prompt.position_ids, following], dim=-1),
        image_numbers=pad(prompt.image_numbers, (0, len(tokens))),
        token_ids=tuple(sorted({*prompt.token_ids, *tokens})),
    )


def _problem_of(adapter: ModelAdapter, question: str, tokens: Sequence[int]) -> TurnProblem | None:
    if adapter.holds_placeholder(question):
        return ExtractionStatus.EMPTY_RESPONSE, PLACEHOLDER_ASKED
    if not tokens:
        return ExtractionStatus.EMPTY_RESPONSE, "the data set gives no answer to this turn"
    if adapter.image_token_id in tokens:
        return ExtractionStatus.EMPTY_RESPONSE, "the given answer holds the image placeholder"
    return None


def _overlong(length: int, max_tokens: int) -> TurnProblem:
    return (
        ExtractionStatus.OVERLONG_RESPONSE,
        f"the conversation grows to {length} tokens, more than {max_tokens}; "
        "raise extraction.max_conversation_tokens",
    )
