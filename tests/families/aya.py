"""A tiny random Aya Vision, laid out on disk as the hub lays it."""

from pathlib import Path

import torch
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Cohere2Config,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from data_contracts.profiles import ImageSettings, ModelProfile
from sdrpn_core.models.aya_vision import AyaVisionAdapter
from tests.tiny_models import perturb_constants, tiny_siglip
from tests.tiny_qwen import (
    NUM_LAYERS,
    decoder_sizes,
    qwen_profile,
    qwen_tokenizer,
    save_answering,
)

SPECIAL = [
    "<PAD>",
    "<BOS_TOKEN>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|START_OF_IMG|>",
    "<|END_OF_IMG|>",
    "TILE_GLOBAL",
    "<|IMG_PATCH|>",
    "<|endoftext|>",
]
SIDE = 40
"""Of the canvas in pixels; patches of 4, merged two by two, give a 5x5 grid."""
_LAYERS = {
    "layer_types": [
        "full_attention" if layer % 3 == 2 else "sliding_attention" for layer in range(NUM_LAYERS)
    ],
    "sliding_window": 12,
    "eos_token_id": SPECIAL.index("<|END_OF_TURN_TOKEN|>"),
}
"""Windows of fewer tokens than an image has; an RPN copies a layer of either kind."""


def tiny_aya_vision(directory: Path) -> ModelProfile:
    """Write it, and return its profile."""
    torch.manual_seed(0)
    tower = tiny_siglip(SIDE, patch_side=4)
    config = AyaVisionConfig(
        vision_config=tower,
        text_config=Cohere2Config(**decoder_sizes(SPECIAL), **_LAYERS),
        image_token_index=SPECIAL.index("<|IMG_PATCH|>"),
        alignment_intermediate_size=64,
        tie_word_embeddings=False,
    )
    model = AyaVisionForConditionalGeneration(config)
    perturb_constants(model)
    save_answering(
        model, qwen_tokenizer(SPECIAL, "<|END_OF_TURN_TOKEN|>"), directory, "<|END_OF_TURN_TOKEN|>"
    )
    GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(directory)
    prompt = AyaVisionAdapter.defaults.prompt
    return qwen_profile("aya_vision", directory, prompt, ImageSettings())
