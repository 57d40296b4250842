"""A tiny random LLaVA-OneVision, laid out on disk as the hub lays it, and how the stock class is
fed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from data_contracts.profiles import ImageSettings, ModelProfile
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.llava_onevision import LlavaOnevisionAdapter
from tests.tiny_models import tiny_siglip
from tests.tiny_qwen import decoder_sizes, qwen_profile, qwen_tokenizer, save_answering

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
SIDE = 40
"""Of the canvas in pixels; patches of 8 give a 5x5 grid."""
NUM_CELLS = 25


def tiny_llava_onevision(directory: Path) -> ModelProfile:
    """Write it, and return its profile."""
    torch.manual_seed(0)
    tower = tiny_siglip(SIDE)
    config = LlavaOnevisionConfig(
        vision_config=tower,
        text_config=Qwen2Config(**decoder_sizes(SPECIAL)),
        image_token_id=SPECIAL.index("<image>"),
        video_token_id=SPECIAL.index("<video>"),
        image_grid_pinpoints=[[SIDE * h, SIDE * w] for h in (1, 2) for w in (1, 2)],
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    save_answering(model, qwen_tokenizer(SPECIAL), directory, "<|im_end|>")
    LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=config.image_grid_pinpoints
    ).save_pretrained(directory)
    prompt = LlavaOnevisionAdapter.defaults.prompt
    return qwen_profile("llava_onevision", directory, prompt, ImageSettings())


def onevision_images(
    adapter: ModelAdapter, images: Sequence[Image.Image], for_labels: bool
) -> dict[str, Any]:
    """One tile each, as images are that come several at a time; told of one more if it is alone."""
    del for_labels
    several = [*images, images[0]]
    inputs = adapter.image_processor([several], return_tensors="pt")
    return {
        "pixel_values": inputs["pixel_values"][:-1],
        "image_sizes": inputs["image_sizes"][:-1],
        "batch_num_images": torch.tensor([len(several)]),
    }
