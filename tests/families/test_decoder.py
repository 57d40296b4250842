"""The adapter's layer-by-layer decoder against the stock forward and ``generate``."""

import pytest
import torch
from PIL import Image
from torch import Tensor

from data_contracts.enums import QuestionKind
from sdrpn_core.attention.masks import ColumnMasks
from sdrpn_core.decoding.decoder import DecoderInput
from sdrpn_core.extraction.generated_answers import Request, capture_attention, extract_attention
from sdrpn_core.generation.greedy import prefill
from sdrpn_core.generation.prompt_batch import pad_left
from sdrpn_core.models.prompts import Prompt
from tests.families.conftest import QUESTIONS, Loaded

MAX_NEW_TOKENS = 7


def embedded(loaded: Loaded, question: str, images: list[Image.Image]) -> Prompt:
    return loaded.adapter.embed_prompt(question, loaded.adapter.encode_images(images))


def requests(images: list[Image.Image], kind: QuestionKind) -> list[Request]:
    return [Request(image, text, kind) for image, text in zip(images, QUESTIONS, strict=True)]


def test_rotary_positions_equal_stock(
    loaded: Loaded, images: list[Image.Image], crops: list[list[Image.Image]]
) -> None:
    """Axes of images and crops, and of the text after them."""
    for question, image, row in zip(QUESTIONS, images, crops, strict=True):
        positions = embedded(loaded, question, [image, *row]).position_ids[..., None, :]
        seen: list[Tensor] = []
        rotary = loaded.stock.get_decoder().rotary_emb
        hook = rotary.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append((*args, *kwargs.values())[1]),
            with_kwargs=True,
        )
        with torch.inference_mode():
            loaded.stock(**loaded.inputs(question, [image, *row]))
        hook.remove()
        assert torch.equal(positions.expand_as(seen[0]), seen[0])
        if positions.ndim > 2:
            assert not torch.equal(positions[1], positions[2]), "axes must differ inside an image"


def test_logits_equal_stock_forward(
    loaded: Loaded, images: list[Image.Image], crops: list[list[Image.Image]]
) -> None:
    """In one padded batch of mixed sizes, with and without crops."""
    rows = [[image, *row] for image, row in zip(images, crops, strict=True)]
    prompts = [embedded(loaded, q, row) for q, row in zip(QUESTIONS, rows, strict=True)]
    with torch.inference_mode():
        ours = prefill(loaded.adapter, pad_left(prompts)).logits
    for question, row, logits in zip(QUESTIONS, rows, ours, strict=True):
        stock = loaded.next_token_logits(loaded.inputs(question, row))
        loaded.assert_close(logits, stock)


def test_hidden_state_at_branch_equals_stock_forward(
    loaded: Loaded, images: list[Image.Image]
) -> None:
    branch = loaded.shape.branch_layer
    for question, image in zip(QUESTIONS, images, strict=True):
        prompt = embedded(loaded, question, [image])
        inputs = DecoderInput(
            prompt.embeds[None],
            ColumnMasks(prompt.image_numbers[None]),
            position_ids=prompt.position_ids[..., None, :],
            deepstack=prompt.deepstack[:, None],
        )
        with torch.inference_mode():
            ours = loaded.adapter.decoder.run(inputs, range(branch))[0]
        stock = loaded.layer_inputs(loaded.inputs(question, [image]), branch)
        torch.testing.assert_close(ours, stock, atol=1e-5 * float(stock.abs().max()), rtol=0)


def test_image_features_of_early_layers_reach_the_branch(
    loaded: Loaded, images: list[Image.Image]
) -> None:
    """Families without deepstack features have nothing to add; the others do add them."""
    prompt = embedded(loaded, QUESTIONS[0], images[:1])
    num_layers = loaded.adapter.num_deepstack_layers
    assert prompt.deepstack.shape == (num_layers, *prompt.embeds.shape)
    added = prompt.deepstack.abs().amax(dim=(0, 2)) if num_layers else torch.zeros(0)
    columns = prompt.image_columns().tolist() if num_layers else []
    assert added.nonzero()[:, 0].tolist() == columns


def test_capture_equals_eager_attention(loaded: Loaded, images: list[Image.Image]) -> None:
    """Every layer and head, averaged over the response and at the last prompt token."""
    layers = loaded.layers_with_heads
    asked = requests(images, QuestionKind.TEXTUAL)
    captured = capture_attention(
        loaded.adapter, asked, dict.fromkeys(layers), max_new_tokens=MAX_NEW_TOKENS
    )
    for index, (request, answer) in enumerate(zip(asked, captured.responses, strict=True)):
        # An answer cut off at the limit never feeds its last token back.
        fed = answer.tokens if answer.is_finished else answer.tokens[:-1]
        inputs = loaded.inputs(request.question, [request.image], for_labels=True, response=fed)
        with torch.inference_mode():
            attentions = loaded.stock(**inputs, output_attentions=True).attentions
        is_cell = loaded.is_cell(inputs)
        length = inputs["input_ids"].shape[1] - len(fed)
        for layer, rows in zip(layers, attentions, strict=True):
            on_image = rows[0][..., is_cell]
            ours = captured.prompt_attention[layer][index]
            torch.testing.assert_close(ours, on_image[:, length - 1], atol=1e-5, rtol=0)
            if fed:
                ours = captured.response_attention[layer][index]
                mean = on_image[:, length:].mean(dim=1)
                torch.testing.assert_close(ours, mean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_responses_equal_stock_generate(
    loaded: Loaded,
    images: list[Image.Image],
    penalty: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the model's own settings punish repetition, as those of Qwen2.5-VL do."""
    for model in (loaded.adapter.model, loaded.stock):
        monkeypatch.setattr(model.generation_config, "repetition_penalty", penalty)
    asked = requests(images, QuestionKind.TEXTUAL)
    captured = capture_attention(loaded.adapter, asked, {}, max_new_tokens=MAX_NEW_TOKENS)
    ends = loaded.adapter.eos_ids
    for request, response in zip(asked, captured.responses, strict=True):
        inputs = loaded.inputs(request.question, [request.image], for_labels=True)
        stock = loaded.stock.generate(
            **inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            suppress_tokens=[loaded.adapter.image_token_id],
            **loaded.family.generation,
        )[0, inputs["input_ids"].shape[1] :]
        assert list(response.tokens) == [token for token in stock.tolist() if token not in ends]
    assert any(response.tokens for response in captured.responses)


def test_suppressed_tokens_are_never_answered(
    loaded: Loaded, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 4's settings suppress its end of an image, which it was let say, and which hides."""
    asked, usual = requests(images, QuestionKind.TEXTUAL), loaded.adapter
    responses = capture_attention(usual, asked, {}, max_new_tokens=MAX_NEW_TOKENS).responses
    barred = sorted({token for response in responses for token in response.tokens[:2]})
    assert barred
    monkeypatch.setattr(usual.model.generation_config, "suppress_tokens", barred)
    adapter = type(usual)(usual.model, usual.tokenizer, usual.profile, usual.image_processor)
    captured = capture_attention(adapter, asked, {}, max_new_tokens=MAX_NEW_TOKENS)
    for request, response in zip(asked, captured.responses, strict=True):
        inputs = loaded.inputs(request.question, [request.image], for_labels=True)
        stock = loaded.stock.generate(
            **inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            suppress_tokens=[usual.image_token_id, *barred],
            **loaded.family.generation,
        )[0, inputs["input_ids"].shape[1] :]
        expected = [token for token in stock.tolist() if token not in usual.eos_ids]
        assert list(response.tokens) == expected
        assert not {*barred} & {*response.tokens}


@pytest.mark.parametrize("for_labels", [True, False], ids=["labels", "answers"])
def test_batch_of_mixed_sizes_equals_one_by_one(
    loaded: Loaded, images: list[Image.Image], for_labels: bool
) -> None:
    asked = requests(images, QuestionKind.NATURAL)
    features = loaded.adapter.encode_images(images, for_labels=for_labels)
    batch = extract_attention(
        loaded.adapter, asked, max_new_tokens=MAX_NEW_TOKENS, features=features
    )
    for request, together in zip(asked, batch, strict=True):
        alone_features = loaded.adapter.encode_images([request.image], for_labels=for_labels)
        (alone,) = extract_attention(
            loaded.adapter, [request], max_new_tokens=MAX_NEW_TOKENS, features=alone_features
        )
        assert (alone.status, alone.response, alone.grid) == (
            together.status,
            together.response,
            together.grid,
        )
        for name in ("grounding", "sink", "prompt_attention"):
            one, other = getattr(alone, name), getattr(together, name)
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
