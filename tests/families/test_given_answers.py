"""Conversations with given answers against the stock model's eager attention, for every family."""

import torch
from PIL import Image

from data_contracts.enums import ExtractionStatus, QuestionKind
from sdrpn_core.extraction.conversation_layout import Conversation, Turn
from sdrpn_core.extraction.teacher_forcing import extract_from_answers
from tests.families.conftest import QUESTIONS, Loaded

NEXT_TURN = "</s> {question} a\n"
ANSWERS = ["red word", "a", "the small red word", "blue"]


def test_every_turn_equals_eager_attention(loaded: Loaded, images: list[Image.Image]) -> None:
    """Two turns about each image, images of mixed sizes in one batch."""
    adapter = loaded.adapter
    before = adapter.profile
    talks = [
        (Turn(question, answer), Turn("is it blue ?", "a small word"))
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    adapter.profile = before.model_copy(update={"next_turn": NEXT_TURN})
    try:
        found = extract_from_answers(
            adapter,
            [
                Conversation(image, turns, QuestionKind.TEXTUAL)
                for image, turns in zip(images, talks, strict=True)
            ],
            max_tokens=4096,
        )
    finally:
        adapter.profile = before

    def tokens(text: str) -> list[int]:
        return adapter.tokenizer(text, add_special_tokens=False).input_ids

    heads = before.heads_for(QuestionKind.TEXTUAL).grounding
    for image, turns, rows in zip(images, talks, found, strict=True):
        parts = [
            tokens(turns[0].answer),
            tokens(NEXT_TURN.format(question=turns[1].question)),
            tokens(turns[1].answer),
        ]
        response = [token for part in parts for token in part]
        inputs = loaded.inputs(turns[0].question, [image], for_labels=True, response=response)
        with torch.inference_mode():
            attentions = loaded.stock(**inputs, output_attentions=True).attentions
        is_cell = loaded.is_cell(inputs)
        length = inputs["input_ids"].shape[1]
        spans = [
            slice(length - len(response), length - len(response) + len(parts[0])),
            slice(length - len(parts[2]), length),
        ]
        for row, span in zip(rows, spans, strict=True):
            assert row.status is ExtractionStatus.OK
            by_layer = dict(zip(loaded.layers_with_heads, attentions, strict=True))
            maps = [by_layer[layer][0, head] for layer in heads for head in heads[layer]]
            wanted = torch.stack(maps)[:, span][..., is_cell].mean(dim=(0, 1))
            torch.testing.assert_close(row.grounding.flatten(), wanted, atol=1e-5, rtol=0)
