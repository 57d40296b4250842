"""Given answers against the stock model's eager attention on the very same text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

from data_contracts.enums import ExtractionStatus, QuestionKind
from data_contracts.sink_rules import (
    SinkCombination,
    SinkDimensions,
    SinkHeads,
    SinkHiddenNorm,
    SinkRule,
    SinkTerm,
)
from sdrpn_core.extraction.conversation_layout import Conversation, Turn
from sdrpn_core.extraction.generated_answers import Request, extract_attention
from sdrpn_core.extraction.teacher_forcing import extract_from_answers
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from tests.image_files import noise
from tests.tiny_models import tiny_llava

NEXT_TURN = "</s> USER: {question} ASSISTANT:"
TALKS = [
    [("what is it ?", "red word"), ("is it blue ?", "a"), ("what is the word ?", "the small word")],
    [("what is the small red word ? a a a a blue", "blue")],
    [("it", "it is a small small small word"), ("is", "red")],
    [("red blue", "a a"), ("what", "is it"), ("word", "blue"), ("the", "the the the")],
]
SIZES = [(60, 40), (30, 50), (45, 45), (80, 20)]
KINDS = [QuestionKind.NATURAL, QuestionKind.TEXTUAL, QuestionKind.NATURAL, QuestionKind.TEXTUAL]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny_llava")


@pytest.fixture(scope="module")
def single_turns(directory: Path) -> ModelAdapter:
    """Whose profile does not say how turns follow each other."""
    return load_adapter(tiny_llava(directory), device="cpu")


@pytest.fixture(scope="module")
def adapter(directory: Path, single_turns: ModelAdapter) -> ModelAdapter:
    profile = single_turns.profile.model_copy(update={"next_turn": NEXT_TURN})
    return load_adapter(profile, device="cpu")


@pytest.fixture(scope="module")
def eager(directory: Path, adapter: ModelAdapter) -> LlavaForConditionalGeneration:
    del adapter  # loads after the weights were written
    return LlavaForConditionalGeneration.from_pretrained(
        directory, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return noise(SIZES)


def talk(
    image: Image.Image, turns: Sequence[tuple[str, str]], kind: QuestionKind = QuestionKind.NATURAL
) -> Conversation:
    return Conversation(image, tuple(Turn(*turn) for turn in turns), kind)


@pytest.fixture(scope="module")
def conversations(images: list[Image.Image]) -> list[Conversation]:
    return [talk(*parts) for parts in zip(images, TALKS, KINDS, strict=True)]


def eager_maps(
    eager: LlavaForConditionalGeneration, adapter: ModelAdapter, conversation: Conversation
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per turn (layers, heads, h, w): mean over the answer's rows, and the row before them.

    The text is tokenised as a whole, word by word, without any of the code under test.
    """
    num_cells = 25
    text = [f"USER: {'<image> ' * num_cells}{conversation.turns[0].question} ASSISTANT:"]
    for turn, following in zip(conversation.turns, conversation.turns[1:], strict=False):
        text += [turn.answer, f"</s> USER: {following.question} ASSISTANT:"]
    text.append(conversation.turns[-1].answer)
    lengths = [len(part.split()) for part in text]
    ids = torch.tensor(adapter.tokenizer(" ".join(text)).input_ids)
    assert len(ids) == sum(lengths)
    embeds = eager.get_input_embeddings()(ids).detach().clone()
    (features,) = adapter.encode_images([conversation.image])
    embeds[ids == adapter.image_token_id] = features.tokens
    with torch.inference_mode():
        attentions = eager.model.language_model(
            inputs_embeds=embeds[None], output_attentions=True
        ).attentions
    on_image = torch.stack(attentions)[:, 0][..., ids == adapter.image_token_id]
    maps = []
    for number in range(len(conversation.turns)):
        start = sum(lengths[: 2 * number + 1])
        end = start + lengths[2 * number + 1]
        at_answer, before = on_image[:, :, start:end].mean(dim=2), on_image[:, :, start - 1]
        maps.append((at_answer.unflatten(-1, (5, 5)), before.unflatten(-1, (5, 5))))
    return maps


def mean_of(maps: torch.Tensor, heads: dict[int, tuple[int, ...]]) -> torch.Tensor:
    return torch.stack([maps[layer, head] for layer in heads for head in heads[layer]]).mean(dim=0)


def test_every_turn_equals_eager_attention_in_a_padded_batch_of_mixed_kinds(
    adapter: ModelAdapter,
    eager: LlavaForConditionalGeneration,
    conversations: list[Conversation],
) -> None:
    found = extract_from_answers(adapter, conversations, max_tokens=500)
    assert [len(rows) for rows in found] == [len(talk) for talk in TALKS]
    for conversation, rows in zip(conversations, found, strict=True):
        selection = adapter.profile.heads[conversation.kind]
        wanted = eager_maps(eager, adapter, conversation)
        for turn, row, (at_answer, before) in zip(conversation.turns, rows, wanted, strict=True):
            assert (row.status, row.response) == (ExtractionStatus.OK, turn.answer)
            assert row.num_response_tokens == len(turn.answer.split())
            sink = (
                mean_of(at_answer, selection.sink.heads)
                if isinstance(selection.sink, SinkHeads)
                else at_answer[0].mean(dim=0)
            )
            close = {"atol": 1e-5, "rtol": 0}
            torch.testing.assert_close(
                row.grounding, mean_of(at_answer, selection.grounding), **close
            )
            torch.testing.assert_close(row.sink, sink, **close)
            torch.testing.assert_close(
                row.prompt_attention, mean_of(before, selection.grounding), **close
            )
    maps = [row.grounding for rows in found for row in rows]
    assert len({tuple(m.flatten().tolist()) for m in maps}) == len(maps), "turns must differ"


COMBINATION = SinkCombination(
    rule="any",
    terms=(
        SinkTerm(signal=SinkHeads(heads={1: (2,)}), threshold=0.01),
        SinkTerm(signal=SinkDimensions(layer=3, dimensions=(5, 7)), threshold=2.0),
    ),
)


@pytest.mark.parametrize(
    "sink",
    [SinkHeads(heads={1: (2,)}), SinkHiddenNorm(layer=5), COMBINATION],
    ids=lambda rule: rule.rule,
)
def test_the_models_own_answer_gives_what_generation_gives(
    adapter: ModelAdapter,
    images: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    sink: SinkRule,
) -> None:
    heads = adapter.profile.heads_for(QuestionKind.NATURAL).model_copy(update={"sink": sink})
    profile = adapter.profile.model_copy(update={"heads": {QuestionKind.NATURAL: heads}})
    monkeypatch.setattr(adapter, "profile", profile)
    next_token_logits = adapter.decoder.next_token_logits

    def words_only(hidden: torch.Tensor) -> torch.Tensor:
        """Special tokens would be lost when the answer becomes text."""
        logits = next_token_logits(hidden)
        logits[:, [0, 1, 3]] = float("-inf")
        return logits

    monkeypatch.setattr(adapter.decoder, "next_token_logits", words_only)
    requests = [
        Request(image, turns[0][0], QuestionKind.NATURAL) for image in images for turns in TALKS
    ]
    answered = extract_attention(adapter, requests, max_new_tokens=20)
    generated = [
        (request, row)
        for request, row in zip(requests, answered, strict=True)
        if row.status is ExtractionStatus.OK
    ]
    assert len(generated) >= 2
    given = extract_from_answers(
        adapter,
        [talk(request.image, [(request.question, row.response)]) for request, row in generated],
        max_tokens=500,
    )
    for (_, row), (forced,) in zip(generated, given, strict=True):
        assert forced.num_response_tokens == row.num_response_tokens
        torch.testing.assert_close(forced.grounding, row.grounding, atol=1e-5, rtol=0)
        # Not all sink signals are shares: some are a few times larger than one.
        torch.testing.assert_close(forced.sink, row.sink, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(forced.prompt_attention, row.prompt_attention, atol=1e-5, rtol=0)


@contextmanager
def layer_calls(adapter: ModelAdapter) -> Iterator[list[int]]:
    """Index of every decoder layer that is run, in order."""
    calls: list[int] = []
    handles = [
        layer.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
        for index, layer in enumerate(adapter.decoder.layers)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("kind", "deepest"), [("natural", 4), ("textual", 3)])
def test_one_pass_that_stops_at_the_deepest_layer_needed(
    adapter: ModelAdapter, images: list[Image.Image], kind: str, deepest: int
) -> None:
    batch = [
        talk(image, turns, QuestionKind(kind)) for image, turns in zip(images, TALKS, strict=True)
    ]
    with layer_calls(adapter) as calls:
        extract_from_answers(adapter, batch, max_tokens=500)
    assert calls == list(range(deepest + 1))


def test_batch_equals_one_by_one(adapter: ModelAdapter, conversations: list[Conversation]) -> None:
    together = extract_from_answers(adapter, conversations, max_tokens=500)
    for conversation, rows in zip(conversations, together, strict=True):
        (alone,) = extract_from_answers(adapter, [conversation], max_tokens=500)
        for one, other in zip(alone, rows, strict=True):
            torch.testing.assert_close(one.grounding, other.grounding, atol=1e-6, rtol=0)
            torch.testing.assert_close(one.sink, other.sink, atol=1e-6, rtol=0)


def test_turns_are_asked_one_by_one_where_the_profile_knows_no_next_turn(
    single_turns: ModelAdapter, conversations: list[Conversation]
) -> None:
    found = extract_from_answers(single_turns, conversations, max_tokens=500)
    for conversation, rows in zip(conversations, found, strict=True):
        for turn, row in zip(conversation.turns, rows, strict=True):
            alone = Conversation(conversation.image, (turn,), conversation.kind)
            ((wanted,),) = extract_from_answers(single_turns, [alone], max_tokens=500)
            torch.testing.assert_close(row.grounding, wanted.grounding, atol=1e-6, rtol=0)


def test_turn_without_answer_says_so_and_the_others_are_as_if_it_were_not_there(
    adapter: ModelAdapter, images: list[Image.Image]
) -> None:
    first, last = ("what is it ?", "red word"), ("is it blue ?", "a")
    batch = [
        talk(images[0], [first, ("what", ""), ("what", "a <image> a"), ("<image> it", "a"), last]),
        talk(images[1], [("what", "")]),
    ]
    (one, empty, placeholder, asked, other), (alone,) = extract_from_answers(
        adapter, batch, max_tokens=500
    )
    without = (empty, placeholder, asked, alone)
    assert {row.status for row in without} == {ExtractionStatus.EMPTY_RESPONSE}
    assert empty.reason == alone.reason == "the data set gives no answer to this turn"
    assert "answer holds the image placeholder" in placeholder.reason
    assert "question holds the image placeholder" in asked.reason
    assert empty.grounding is None
    assert (empty.grid, empty.letterbox.image_size) == (one.grid, SIZES[0])
    ((wanted_one, wanted_other),) = extract_from_answers(
        adapter, [talk(images[0], [first, last])], max_tokens=500
    )
    torch.testing.assert_close(one.grounding, wanted_one.grounding, atol=1e-6, rtol=0)
    torch.testing.assert_close(other.grounding, wanted_other.grounding, atol=1e-6, rtol=0)


def test_only_the_turns_beyond_the_limit_are_overlong(
    adapter: ModelAdapter, conversations: list[Conversation]
) -> None:
    # USER:, 25 image tokens, "what is it ?", ASSISTANT:, "red word"; then </s> USER: ... "a".
    length = 1 + 25 + 4 + 1 + 2
    for limit, statuses in [
        (length - 1, ["overlong_response"] * 3),
        (length, ["ok", "overlong_response", "overlong_response"]),
        (length + 8, ["ok", "ok", "overlong_response"]),
    ]:
        (rows,) = extract_from_answers(adapter, conversations[:1], max_tokens=limit)
        assert [row.status.value for row in rows] == statuses, limit
    assert rows[-1].reason.endswith("raise extraction.max_conversation_tokens")
    (whole,) = extract_from_answers(adapter, conversations[:1], max_tokens=500)
    torch.testing.assert_close(rows[1].grounding, whole[1].grounding, atol=1e-6, rtol=0)
