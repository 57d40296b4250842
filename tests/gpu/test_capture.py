"""Attention read on the GPU: against eager in bfloat16, and against the CPU in float32."""

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from data_contracts.enums import ExtractionStatus, QuestionKind
from data_contracts.profiles import ModelProfile
from data_contracts.sink_rules import SinkHiddenNorm
from sdrpn_core.attention.sinks import HiddenRecorder
from sdrpn_core.extraction.generated_answers import Request, capture_attention, extract_attention
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.prompts import Prompt
from tests.tiny_models import NUM_LAYERS
from tests.zoom_checks import random_images

QUESTIONS = ["what is it ?", "what is the small red word ? a a a a blue", "it", "is", "red blue"]
ALL_HEADS = dict.fromkeys(range(NUM_LAYERS))
MAX_NEW_TOKENS = 9


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    images = random_images([(60, 40), (30, 50), (45, 45), (80, 20), (33, 77)])
    return [
        Request(image, question, QuestionKind.NATURAL)
        for image, question in zip(images, QUESTIONS, strict=True)
    ]


def eager_model(profile: ModelProfile, device: str, dtype: torch.dtype):
    return LlavaForConditionalGeneration.from_pretrained(
        profile.model_id, attn_implementation="eager", dtype=dtype
    ).to(device)


def eager_rows(model: LlavaForConditionalGeneration, prompt: Prompt) -> torch.Tensor:
    """Attention of the last prompt token to the image, (layers, heads, cells) on the CPU."""
    with torch.inference_mode():
        attentions = model.model.language_model(
            inputs_embeds=prompt.embeds[None].to(model.dtype), output_attentions=True
        ).attentions
    return torch.stack(attentions)[:, 0, :, -1, prompt.image_columns()].float().cpu()


def test_capture_in_bfloat16_is_as_exact_as_eager_in_a_padded_batch(
    half: ModelAdapter, profile: ModelProfile, device: str, requests: list[Request]
) -> None:
    """Both round, in different places, and layers amplify it: float32 says how much is right."""
    exact, rounded = (
        eager_model(profile, device, dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    captured = capture_attention(half, requests, ALL_HEADS, max_new_tokens=MAX_NEW_TOKENS)
    ours, theirs = [], []
    for index, request in enumerate(requests):
        prompt = half.embed_prompt(request.question, half.encode_images([request.image]))
        expected = eager_rows(exact, prompt)
        found = torch.stack([captured.prompt_attention[n][index] for n in range(NUM_LAYERS)])
        ours.append((found.float().cpu() - expected).abs())
        theirs.append((eager_rows(rounded, prompt) - expected).abs())
        assert expected.amax() > 0.3, "rows that are flat would be equal whatever is read"
        assert ours[-1][0].amax() < 2**-6, "the first layer has nothing to amplify"
    assert torch.stack(ours).mean() < 1.5 * torch.stack(theirs).mean()


def test_sink_signals_of_layers_on_another_device(device: str) -> None:
    """A model spread over several devices ended with an error about mixed ones."""
    recorder = HiddenRecorder(signals=[SinkHiddenNorm(layer=1)], columns_NC=torch.tensor([[1, 3]]))
    hidden = torch.arange(8.0).reshape(1, 4, 2)
    recorder.see(1, hidden.to(device))
    (norms,) = recorder.maps.values()
    torch.testing.assert_close(norms, hidden[:, [1, 3]].norm(dim=-1))


def test_extraction_in_float32_equals_the_cpu(
    full: ModelAdapter, profile: ModelProfile, requests: list[Request]
) -> None:
    cpu = load_adapter(profile, device="cpu")
    pairs = [
        extract_attention(adapter, requests, max_new_tokens=MAX_NEW_TOKENS)
        for adapter in (full, cpu)
    ]
    num_maps = 0
    for ours, expected in zip(*pairs, strict=True):
        assert (ours.status, ours.response) == (expected.status, expected.response)
        if expected.status is ExtractionStatus.OK:
            num_maps += 1
            torch.testing.assert_close(ours.grounding.cpu(), expected.grounding, atol=1e-4, rtol=0)
    assert num_maps >= 2
