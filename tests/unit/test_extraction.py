"""Capture and decoding against the stock model: eager attention and ``generate`` as oracles."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

from data_contracts.enums import ExtractionStatus, QuestionKind
from sdrpn_core.extraction.conversation_layout import Conversation, Turn
from sdrpn_core.extraction.generated_answers import Request, capture_attention, extract_attention
from sdrpn_core.extraction.teacher_forcing import extract_from_answers
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from tests.image_files import noise
from tests.tiny_models import NUM_LAYERS, tiny_llava

QUESTIONS = ["what is it ?", "what is the small red word ? a a a a blue", "it", "is", "red blue"]
SIZES = [(60, 40), (30, 50), (45, 45), (80, 20), (33, 77)]
MAX_NEW_TOKENS = 9
ALL_HEADS = dict.fromkeys(range(NUM_LAYERS))


@pytest.fixture(scope="module", params=[1, 2, 4], ids=lambda heads: f"kv_heads={heads}")
def model_directory(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory = tmp_path_factory.mktemp("tiny_llava")
    tiny_llava(directory, num_key_value_heads=request.param, seed=request.param)
    return directory


@pytest.fixture(scope="module")
def adapter(model_directory: Path) -> ModelAdapter:
    kv_heads = LlavaForConditionalGeneration.config_class.from_pretrained(
        model_directory
    ).text_config.num_key_value_heads
    profile = tiny_llava(model_directory, num_key_value_heads=kv_heads, seed=kv_heads)
    return load_adapter(profile, device="cpu")


@pytest.fixture(scope="module")
def eager(model_directory: Path, adapter: ModelAdapter) -> LlavaForConditionalGeneration:
    del adapter  # loads after the adapter's fixture has written the weights
    return LlavaForConditionalGeneration.from_pretrained(
        model_directory, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return [
        Request(image, question, QuestionKind.NATURAL)
        for image, question in zip(noise(SIZES), QUESTIONS, strict=True)
    ]


def eager_rows(
    eager: LlavaForConditionalGeneration, adapter: ModelAdapter, request: Request, tokens: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Full attention maps of prompt + response, one sample: (layers, heads, C) twice."""
    prompt = adapter.embed_prompt(request.question, adapter.encode_images([request.image]))
    answer = eager.get_input_embeddings()(torch.tensor(tokens, dtype=torch.long))
    with torch.inference_mode():
        attentions = eager.model.language_model(
            inputs_embeds=torch.cat([prompt.embeds, answer])[None], output_attentions=True
        ).attentions
    full = torch.stack(attentions)[:, 0]
    length = prompt.embeds.shape[0]
    on_image = full[..., prompt.image_columns()]
    return on_image[:, :, length:].mean(dim=2), on_image[:, :, length - 1]


def test_capture_equals_eager_in_a_padded_batch_with_early_finished_rows(
    adapter: ModelAdapter, eager: LlavaForConditionalGeneration, requests: list[Request]
) -> None:
    captured = capture_attention(adapter, requests, ALL_HEADS, max_new_tokens=MAX_NEW_TOKENS)
    lengths = {len(response.tokens) for response in captured.responses}
    assert len(lengths) > 1, "the batch must mix response lengths to test finished rows"
    for index, (request, response) in enumerate(zip(requests, captured.responses, strict=True)):
        # An answer cut off at the limit never feeds its last token back.
        fed = list(response.tokens if response.is_finished else response.tokens[:-1])
        at_response, at_prompt = eager_rows(eager, adapter, request, fed)
        for layer in range(NUM_LAYERS):
            torch.testing.assert_close(
                captured.prompt_attention[layer][index], at_prompt[layer], atol=1e-5, rtol=0
            )
            if fed:
                torch.testing.assert_close(
                    captured.response_attention[layer][index], at_response[layer], atol=1e-5, rtol=0
                )


def assert_batch_equals_one_by_one(
    adapter: ModelAdapter, requests: list[Request], atol: float
) -> None:
    """Also in which rows have no map; enough of them must have one for this to say anything."""
    batch = extract_attention(adapter, requests, max_new_tokens=MAX_NEW_TOKENS)
    num_maps = 0
    for request, together in zip(requests, batch, strict=True):
        (alone,) = extract_attention(adapter, [request], max_new_tokens=MAX_NEW_TOKENS)
        assert (alone.status, alone.response) == (together.status, together.response)
        assert (alone.grounding is None) == (together.grounding is None)
        if alone.grounding is not None:
            num_maps += 1
            torch.testing.assert_close(alone.grounding, together.grounding, atol=atol, rtol=0)
            torch.testing.assert_close(alone.sink, together.sink, atol=atol, rtol=0)
    assert num_maps >= 2, "rows without maps are equal whatever extraction does"


def test_batch_equals_one_by_one(adapter: ModelAdapter, requests: list[Request]) -> None:
    assert_batch_equals_one_by_one(adapter, requests, atol=1e-6)


def test_responses_equal_stock_generate(
    adapter: ModelAdapter, eager: LlavaForConditionalGeneration, requests: list[Request]
) -> None:
    captured = capture_attention(adapter, requests, {}, max_new_tokens=MAX_NEW_TOKENS)
    for request, response in zip(requests, captured.responses, strict=True):
        prompt = adapter.embed_prompt(request.question, adapter.encode_images([request.image]))
        stock = eager.generate(
            inputs_embeds=prompt.embeds[None],
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            suppress_tokens=[adapter.image_token_id],
        )[0].tolist()
        assert list(response.tokens) == [token for token in stock if token not in adapter.eos_ids]


def test_embedding_equals_stock_forward(
    adapter: ModelAdapter, eager: LlavaForConditionalGeneration, requests: list[Request]
) -> None:
    prompt = adapter.embed_prompt(QUESTIONS[0], adapter.encode_images([requests[0].image]))
    canvas = adapter.letterbox(requests[0].image.size).paste(
        requests[0].image, adapter.fill, (40, 40)
    )
    pixels = adapter.image_processor([canvas], return_tensors="pt")["pixel_values"]
    text = adapter.profile.prompt.format(images="<image>", question=QUESTIONS[0])
    ids = adapter.tokenizer(text).input_ids
    at = ids.index(adapter.image_token_id)
    ids = ids[:at] + [adapter.image_token_id] * 25 + ids[at + 1 :]
    with torch.inference_mode():
        stock = eager(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0, -1]
        mine = eager(inputs_embeds=prompt.embeds[None]).logits[0, -1]
    torch.testing.assert_close(mine, stock, atol=1e-5, rtol=1e-5)


def test_answer_that_is_only_the_end_token_becomes_a_row(adapter: ModelAdapter) -> None:
    """Reference defect 7: an EOS-only answer crashed the run and lost every result."""
    head = adapter.model.get_output_embeddings()
    original = head.weight.data.clone()
    try:
        # Every hidden state now scores the end token highest or ties at zero below it.
        head.weight.data.zero_()
        head.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(2), 17).float())
        image = Image.new("RGB", (20, 30))
        (row,) = extract_attention(
            adapter, [Request(image, "it", QuestionKind.NATURAL)], max_new_tokens=4
        )
    finally:
        head.weight.data.copy_(original)
        head.bias = None
    assert row.status is ExtractionStatus.EMPTY_RESPONSE
    assert row.grounding is None
    assert row.reason


def test_a_question_that_cannot_be_asked_becomes_a_row(
    adapter: ModelAdapter, requests: list[Request]
) -> None:
    """One that spelt the model's own image placeholder stopped the run, and every rerun."""
    spelt = Request(requests[1].image, "what <image> it", requests[1].kind)
    first, placeholder, last = extract_attention(
        adapter, [requests[0], spelt, requests[2]], max_new_tokens=4
    )
    assert placeholder.status is ExtractionStatus.EMPTY_RESPONSE
    assert placeholder.reason == "the question holds the image placeholder"
    assert placeholder.grounding is None
    assert placeholder.letterbox.image_size == spelt.image.size
    alone = extract_attention(adapter, [requests[0], requests[2]], max_new_tokens=4)
    for row, wanted in zip((first, last), alone, strict=True):
        assert row.response == wanted.response
        torch.testing.assert_close(row.grounding, wanted.grounding, atol=0, rtol=0)
    (only,) = extract_attention(adapter, [spelt], max_new_tokens=4)
    assert only.reason == placeholder.reason


@pytest.mark.parametrize("layer", [1, -1])
def test_numbers_that_are_not_finite_become_a_row(adapter: ModelAdapter, layer: int) -> None:
    """Below the heads they broke a shard's contract, above them they were an answer without end."""
    half = load_adapter(adapter.profile, device="cpu", dtype="float16")
    with torch.no_grad():
        half.decoder.layers[layer].mlp.down_proj.weight.fill_(torch.inf)
    request = Request(Image.new("RGB", (20, 30)), "it", QuestionKind.NATURAL)
    (row,) = extract_attention(half, [request], max_new_tokens=4)
    assert row.status is ExtractionStatus.EMPTY_RESPONSE
    assert "not finite in this precision: take bfloat16" in row.reason
    assert row.grounding is None
    talk = Conversation(request.image, (Turn("it", "red"),), request.kind)
    ((given,),) = extract_from_answers(half, [talk], max_tokens=500)
    assert (given.grounding is None) == (layer == 1)  # what is above the heads is not run


def test_kinds_use_their_own_heads_in_one_batch(
    adapter: ModelAdapter, requests: list[Request]
) -> None:
    mixed = [
        Request(r.image, r.question, kind)
        for r, kind in zip(requests, [QuestionKind.TEXTUAL, QuestionKind.NATURAL] * 3, strict=False)
    ]
    assert_batch_equals_one_by_one(adapter, mixed, atol=5e-6)
