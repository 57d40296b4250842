"""Tiny random models of Mistral 3's class, laid out on disk as the hub lays them, and how the stock
class is fed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import (
    Ministral3Config,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedConfig,
)
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from data_contracts.profiles import DynamicGrid, ImageSettings, ModelProfile, SquareGrid
from sdrpn_core.geometry import GridShape
from sdrpn_core.models.base import ModelAdapter
from tests.families.squares import mean_squares
from tests.tiny_models import SPECIAL, llama_profile, save_model, tiny_llama, tiny_tokenizer

PATCH = 4
CELL = 2 * PATCH
MOST = 10
"""Cells of a side."""
BREAKS = ["[IMG_BREAK]", "[IMG_END]"]
IMAGES = ImageSettings(
    labels=SquareGrid(side=5),
    answers=DynamicGrid(min_cells=1, max_cells=MOST**2),  # as the stock processor's own rule
)


def tiny_mistral3(directory: Path) -> ModelProfile:
    """As Mistral Small: a head size of its own."""
    return _write(MistralConfig(**_decoder(), sliding_window=None), directory)


def tiny_ministral3(directory: Path) -> ModelProfile:
    """As Ministral 3: positions scaled, and queries with them, here from a few columns on."""
    rotary = {
        "rope_type": "yarn",
        "rope_theta": 1000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 16,
        "max_position_embeddings": 256,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.5,
    }
    return _write(Ministral3Config(**_decoder(), rope_parameters=rotary), directory)


def _decoder() -> dict[str, Any]:
    sizes = tiny_llama(2, more_tokens=len(BREAKS)).to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads", "initializer_range")
    names += ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: sizes[name] for name in names} | {"head_dim": 16, "max_position_embeddings": 256}


def _write(decoder: PreTrainedConfig, directory: Path) -> ModelProfile:
    torch.manual_seed(0)
    tower = PixtralVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=MOST * CELL,
        patch_size=PATCH,
        initializer_range=0.2,
    )
    config = Mistral3Config(
        vision_config=tower,
        text_config=decoder,
        image_token_id=SPECIAL.index("<image>"),
        tie_word_embeddings=False,
    )
    save_model(Mistral3ForConditionalGeneration(config), directory)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in BREAKS])
    tokenizer.save_pretrained(directory)
    PixtralImageProcessorPil(
        size={"longest_edge": MOST * CELL}, patch_size={"height": PATCH, "width": PATCH}
    ).save_pretrained(directory)
    return llama_profile("mistral3", directory, IMAGES)


def mistral_images(
    adapter: ModelAdapter, images: Sequence[Image.Image], for_labels: bool
) -> dict[str, Any]:
    """As the stock processor has its image processor resize them; for labels a square instead."""
    processor = adapter.image_processor
    cells = {"height": CELL, "width": CELL}
    if not for_labels:
        return dict(processor(list(images), patch_size=cells, return_tensors="pt"))
    rule = adapter.profile.images.labels
    assert isinstance(rule, SquareGrid)
    squares = mean_squares(processor, images, rule.side * CELL)
    return dict(processor(squares, do_resize=False, return_tensors="pt"))


def mistral_grids(adapter: ModelAdapter, inputs: dict[str, Any]) -> list[GridShape]:
    """Whole cells of each image, without what pads it to the largest."""
    del adapter
    return [GridShape(h // CELL, w // CELL) for h, w in inputs["image_sizes"].tolist()]


def mistral_ids(adapter: ModelAdapter, grid: GridShape) -> list[int]:
    """As the stock processor writes an image: it needs torchvision, and is not run here."""
    end_of_row, end = adapter.tokenizer.convert_tokens_to_ids(BREAKS)
    rows = ([adapter.image_token_id] * grid.width + [end_of_row]) * grid.height
    return [*rows[:-1], end]
