"""The Janus adapter against the stock class fed by the stock processor."""

from pathlib import Path

import torch
from transformers import AutoTokenizer
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT, JanusProcessor

from sdrpn_core.models.deepseek_vl import SYSTEM
from sdrpn_core.models.loading import load_adapter
from tests.families.janus import MARKERS, SIDE, tiny_janus
from tests.stock_generation import check_generates_as_stock
from tests.zoom_checks import random_images


@torch.inference_mode()
def test_generates_what_the_stock_model_does_from_the_stock_processor(tmp_path: Path) -> None:
    """Square images, which the processor pads by nothing, between the markers that it writes."""
    adapter = load_adapter(tiny_janus(tmp_path), device="cpu")
    images, question = random_images([(60, 60), (SIDE, SIDE)]), "what is the red word"
    prompt = adapter.embed_prompt(question, adapter.encode_images(images))
    tokens = {"image_token": "<image>", "boi_token": MARKERS[0], "eoi_token": MARKERS[1]}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, extra_special_tokens=tokens)
    processor = JanusProcessor(adapter.image_processor, tokenizer, num_image_tokens=25)
    inputs = processor(text=f"USER: <image><image> {question} ASSISTANT:", images=images)
    text = tokenizer.decode(inputs.input_ids[0])
    assert text.count(MARKERS[1]) == 2
    check_generates_as_stock(adapter, prompt, text, {"pixel_values": inputs["pixel_values"]})


def test_the_prompt_begins_as_the_stock_processor_has_it() -> None:
    assert DEFAULT_SYSTEM_PROMPT == SYSTEM
