"""Given answers are cut into tokens as the model itself would have said them."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from data_contracts.enums import QuestionKind
from sdrpn_core.extraction.conversation_layout import Conversation, Turn, lay_out_turns
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from tests.tiny_models import SPECIAL, tiny_llava, with_special_tokens

QUESTION, ANSWERS = "what is it ?", ("red word", "a blue one")
NEXT_TURN = "</s>User: {question} Assistant:"

SPLITS = {
    "byte-level": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    "SentencePiece": pre_tokenizers.Metaspace(prepend_scheme="always"),
}


def tokenizer_of(split: pre_tokenizers.PreTokenizer) -> PreTrainedTokenizerFast:
    """Characters as tokens."""
    letters = {*pre_tokenizers.ByteLevel.alphabet(), "\u2581", "\n", " "}
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *sorted(letters)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    return with_special_tokens(tokenizer)


@pytest.fixture(params=list(SPLITS))
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> ModelAdapter:
    """Of a model with a tokenizer of some kind."""
    profile = tiny_llava(tmp_path)
    tokenizer = tokenizer_of(SPLITS[request.param])
    tokenizer.save_pretrained(tmp_path)
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    stock.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    stock.save_pretrained(tmp_path)
    changes = {"prompt": "User: {images} {question} Assistant:", "next_turn": NEXT_TURN}
    return load_adapter(profile.model_copy(update=changes), device="cpu")


def answers_of(adapter: ModelAdapter) -> list[tuple[int, ...]]:
    image = Image.new("RGB", (50, 40))
    turns = tuple(Turn(QUESTION, answer) for answer in ANSWERS)
    talk = Conversation(image, turns, QuestionKind.NATURAL)
    (features,) = adapter.encode_images([image], for_labels=True)
    (sequence,), problems = lay_out_turns(adapter, talk, features, 0, 512)
    assert not problems
    return [answer.tokens for answer in sequence.answers]


def tokens(adapter: ModelAdapter, text: str) -> Sequence[int]:
    return tuple(adapter.tokenizer(text, add_special_tokens=False).input_ids)


def test_an_answer_after_a_colon_is_cut_as_in_the_whole_text(adapter: ModelAdapter) -> None:
    """DeepSeek-VL and SmolVLM write "Assistant: red word", and the space is the first token's."""
    for answer, found in zip(ANSWERS, answers_of(adapter), strict=True):
        whole = tokens(adapter, f"Assistant: {answer}")
        assert whole == (*tokens(adapter, "Assistant:"), *found)


def test_an_answer_on_a_line_of_its_own_is_cut_as_it_stands(adapter: ModelAdapter) -> None:
    adapter.profile = adapter.profile.model_copy(
        update={"prompt": "{images}{question}\nassistant\n", "next_turn": "\n{question}\n"}
    )
    assert answers_of(adapter) == [tokens(adapter, answer) for answer in ANSWERS]


@pytest.mark.parametrize("end", ["</s>", "<channel|>", "."])
def test_after_a_marker_there_is_no_space(adapter: ModelAdapter, end: str) -> None:
    """Gemma 4's prompt ends with a marker, which the model's own answers follow at once."""
    profile = adapter.profile
    adapter.profile = profile.model_copy(
        update={"prompt": f"{{images}}{{question}}{end}", "next_turn": f"{{question}}{end}"}
    )
    assert answers_of(adapter) == [tokens(adapter, answer) for answer in ANSWERS]


def test_no_answer_has_no_tokens(adapter: ModelAdapter) -> None:
    assert adapter.answer_tokens("", "Assistant:") == ()
