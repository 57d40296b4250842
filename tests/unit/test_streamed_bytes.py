"""Pieces of answers in vocabularies that spell rare characters byte by byte, as LLaVA's does."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from tests.zoom_checks import random_pipeline

BYTES = ["<0xE4>", "<0xBD>", "<0xA0>", "<0xE5>", "<0xA5>"]
"""The first of two characters, and two thirds of the second: no text at all."""


@pytest.fixture
def spelling(adapter: ModelAdapter) -> ModelAdapter:
    """The model with a tokenizer that spells what it has no word for."""
    own = load_adapter(adapter.profile, device="cpu")
    vocabulary = own.tokenizer.get_vocab()
    spelt = vocabulary | {byte: len(vocabulary) + n for n, byte in enumerate(BYTES)}
    tokenizer = Tokenizer(models.WordLevel(spelt, unk_token="<unk>"))
    tokenizer.pre_tokenizer = own.tokenizer.backend_tokenizer.pre_tokenizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("_", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    own.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    return own


@pytest.mark.parametrize(
    ("tokens", "pieces"),
    [
        (BYTES[:3], ["", "\u4f60"]),
        (BYTES, ["\ufffd" * 5]),
        ([*BYTES[:4], "red"], ["\ufffd" * 4 + "red", ""]),
        (["red", *BYTES[:3], "blue", "</s>"], ["red", "\u4f60blue", ""]),
    ],
)
def test_pieces_are_the_answer_where_bytes_are_spelt(
    spelling: ModelAdapter,
    tokens: list[str],
    pieces: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A character was sent, and taken back when a byte after it made the whole run invalid."""
    steps = spelling.tokenizer.convert_tokens_to_ids(tokens)

    def spell(*_: Any) -> Iterator[Tensor]:
        yield from (torch.tensor([token]) for token in steps)

    monkeypatch.setattr("sdrpn_core.zoom.answers.decode_steps", spell)
    sent = list(random_pipeline(spelling).stream([Image.new("RGB", (40, 40))], ["it"]))
    answer = sent[-1].answer
    assert answer is not None
    assert "".join(piece.text for piece in sent) == answer.text == "".join(pieces)
    assert [piece.text for piece in sent if piece.text] == [text for text in pieces if text]
