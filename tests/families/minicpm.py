"""Tiny random MiniCPM-V 4.6 and 4.7, laid out on disk as the hub lays them, and how the stock class
is fed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    MiniCPMV4_6Config,
    MiniCPMV4_6ForConditionalGeneration,
    MiniCPMV4_7Config,
    MiniCPMV4_7ForConditionalGeneration,
    PreTrainedModel,
    Qwen3_5TextConfig,
)
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
    MiniCPMV4_6ImageProcessorPil,
)

from data_contracts.profiles import DynamicGrid, ImageSettings, ModelProfile, SquareGrid
from sdrpn_core.geometry import GridShape
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.minicpmv import MiniCpmVAdapter
from tests.families.squares import mean_squares
from tests.tiny_models import perturb_constants
from tests.tiny_qwen import (
    TEXT_3_5,
    decoder_sizes,
    lengthen_states,
    qwen_profile,
    qwen_tokenizer,
    save_answering,
    with_mixed_layers,
)

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<image>",
    "</image>",
    "<image_id>",
    "</image_id>",
    "0",
    "1",
    "2",
    "<think>",
    "</think>",
]
PATCH, CELL = 4, 8
SIDE = 5
"""Of the grid, in cells."""
IMAGES = ImageSettings(
    labels=SquareGrid(side=SIDE), answers=DynamicGrid(min_cells=SIDE**2, max_cells=SIDE**2)
)
_FEW = {"slice_mode": False, "downsample_mode": "4x"}
"""Settings for an image without slices, four patches a token."""


def tiny_minicpmv4_6(directory: Path) -> ModelProfile:
    """Write it, and return its profile."""
    torch.manual_seed(0)
    model = MiniCPMV4_6ForConditionalGeneration(MiniCPMV4_6Config(**_settings()))
    return _write("minicpmv4_6", model, directory)


def tiny_minicpmv4_7(directory: Path) -> ModelProfile:
    """Its cells are numbered on two axes, between the markers of its images."""
    torch.manual_seed(0)
    markers = {
        "image_start_id": SPECIAL.index("<image>"),
        "image_end_id": SPECIAL.index("</image>"),
    }
    model = MiniCPMV4_7ForConditionalGeneration(MiniCPMV4_7Config(**_settings(), **markers))
    return _write("minicpmv4_7", model, directory)


def _settings() -> dict[str, Any]:
    return {
        "text_config": Qwen3_5TextConfig(**decoder_sizes(SPECIAL) | TEXT_3_5),
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 8 * PATCH,
            "patch_size": PATCH,
        },
        "insert_layer_id": 0,
        "image_token_id": SPECIAL.index("<|image_pad|>"),
        "video_token_id": SPECIAL.index("<|video_pad|>"),
    }


def _write(family: str, model: PreTrainedModel, directory: Path) -> ModelProfile:
    perturb_constants(model)
    for name, parameter in model.named_parameters():
        if name.startswith("model.merger") and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15)
    lengthen_states(model)
    save_answering(model, qwen_tokenizer(SPECIAL), directory, "<|im_end|>", "<|endoftext|>")
    MiniCPMV4_6ImageProcessorPil(
        patch_size=PATCH, scale_resolution=SIDE * CELL, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(directory)
    prompt = MiniCpmVAdapter.defaults.prompt
    return with_mixed_layers(qwen_profile(family, directory, prompt, IMAGES))


def minicpmv_images(
    adapter: ModelAdapter, images: Sequence[Image.Image], for_labels: bool
) -> dict[str, Any]:
    """What the stock processor makes of an image without slices; for labels of a square instead."""
    processor = adapter.image_processor
    if for_labels:
        images = mean_squares(processor, images, SIDE * CELL)
    inputs = processor(list(images), return_tensors="pt", **_FEW)
    return {
        "pixel_values": inputs["pixel_values"],
        "target_sizes": inputs["target_sizes"],
        "downsample_mode": _FEW["downsample_mode"],
    }


def minicpmv_grids(adapter: ModelAdapter, inputs: dict[str, Any]) -> list[GridShape]:
    """Patches of each image, merged two by two."""
    del adapter
    return [GridShape(h // 2, w // 2) for h, w in inputs["target_sizes"].tolist()]


def minicpmv_cell_pixels(inputs: dict[str, Any], grid: GridShape) -> Tensor:
    """Patches of a (1, 3, s, P * s) tensor, row by row, averaged two by two."""
    patches = inputs["pixel_values"][0].mean(dim=0).unflatten(-1, (-1, PATCH)).mean(dim=(0, 2))
    rows = patches.view(1, 2 * grid.height, 2 * grid.width)
    return functional.adaptive_avg_pool2d(rows, grid)[0]
