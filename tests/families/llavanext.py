"""A tiny random LLaVA-NeXT, laid out on disk as the hub lays it, and how the stock class is fed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import GraniteConfig, LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from data_contracts.profiles import ModelProfile
from sdrpn_core.models.base import ModelAdapter
from tests.tiny_models import (
    SPECIAL,
    llama_profile,
    save_model,
    tiny_clip,
    tiny_llama,
    tiny_tokenizer,
)

SIDE = 40
"""Of a tile in pixels; patches of 8 give a 5x5 grid."""
TILES = [[SIDE * h, SIDE * w] for h, w in ((1, 2), (2, 1), (2, 2))]
"""Sizes that the stock processor cuts tiles from, beside the one that shows the whole image."""
NO_TILES = [[0, 0]]
"""The same in a configuration with which the stock class takes the whole image alone."""
_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.7,
}


def tiny_llava_next(directory: Path, **changes: Any) -> ModelProfile:
    """Write it, and return its profile: as Granite Vision, which multiplies embeddings and more.

    Args:
        directory: to write to.
        changes: of its configuration.
    """
    torch.manual_seed(0)
    text = tiny_llama(2).to_diff_dict() | {"model_type": "granite"}
    settings: dict[str, Any] = {
        "vision_config": tiny_clip(SIDE),
        "text_config": GraniteConfig(**text, **_MULTIPLIERS),
        "image_token_index": SPECIAL.index("<image>"),
        "vision_feature_layer": -1,
        "image_seq_length": 25,
        "image_grid_pinpoints": NO_TILES,
    }
    config = LlavaNextConfig(**settings | changes)
    save_model(LlavaNextForConditionalGeneration(config), directory)
    tiny_tokenizer().save_pretrained(directory)
    LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=TILES,
    ).save_pretrained(directory)
    return llama_profile("llava_next", directory)


def llava_next_images(
    adapter: ModelAdapter, images: Sequence[Image.Image], for_labels: bool
) -> dict[str, Any]:
    """The first tile of each, which is all of it stretched to a square."""
    del for_labels
    inputs = adapter.image_processor(list(images), return_tensors="pt")
    return {
        "pixel_values": inputs["pixel_values"][:, :1],
        "image_sizes": inputs["image_sizes"],
    }


def llava_next_encoder(model: Any) -> tuple[Any, str]:
    """The tower itself: the stock method around it wants every tile that it would cut."""
    return model.model.vision_tower, "forward"
