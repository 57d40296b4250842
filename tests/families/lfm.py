"""Tiny random LFM2-VL, laid out on disk as the hub lays it, and how the stock class is fed."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

from data_contracts.profiles import DynamicGrid, ImageSettings, ModelProfile, SquareGrid
from sdrpn_core.geometry import GridShape
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.lfm2_vl import Lfm2VlAdapter
from tests.families.squares import padded_to_square
from tests.tiny_models import perturb_constants
from tests.tiny_qwen import (
    NUM_LAYERS,
    decoder_sizes,
    qwen_profile,
    qwen_tokenizer,
    save_answering,
    with_mixed_layers,
)

SPECIAL = [
    "<|pad|>",
    "<|startoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<|image_start|>",
    "<|image_end|>",
]
PATCH, CELL = 4, 8
SIDE = 5
"""Of the grid for labels, in cells."""
LEAST, MOST = 12, 25
IMAGES = ImageSettings(
    labels=SquareGrid(side=SIDE), answers=DynamicGrid(min_cells=LEAST, max_cells=MOST)
)
_KINDS = ["full_attention" if layer % 3 == 1 else "conv" for layer in range(NUM_LAYERS)]


def tiny_lfm2_vl(directory: Path) -> ModelProfile:
    """Two layers of three are short convolutions; learnt positions that are drawn to each grid."""
    torch.manual_seed(0)
    config = Lfm2VlConfig(
        text_config=decoder_sizes(SPECIAL)
        | {
            "model_type": "lfm2",
            "layer_types": _KINDS,
            "block_auto_adjust_ff_dim": False,
            "pad_token_id": SPECIAL.index("<|pad|>"),
            "eos_token_id": SPECIAL.index("<|im_end|>"),
        },
        vision_config={
            "model_type": "siglip2_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_patches": 36,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        image_token_id=SPECIAL.index("<image>"),
        projector_hidden_size=40,
        downsample_factor=CELL // PATCH,
        tie_word_embeddings=False,
    )
    model = Lfm2VlForConditionalGeneration(config)
    perturb_constants(model)
    tokenizer = qwen_tokenizer(SPECIAL, end="<|im_end|>", pad="<|pad|>")
    save_answering(model, tokenizer, directory, "<|im_end|>")
    (directory / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "Lfm2VlImageProcessorFast",
                "encoder_patch_size": PATCH,
                "downsample_factor": CELL // PATCH,
                "min_image_tokens": LEAST,
                "max_image_tokens": MOST,
                "tile_size": SIDE * CELL,
                "size": {"height": SIDE * CELL, "width": SIDE * CELL},
                "do_image_splitting": True,
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
                "resample": 2,
            }
        )
    )
    prompt = Lfm2VlAdapter.defaults.prompt
    return with_mixed_layers(qwen_profile("lfm2_vl", directory, prompt, IMAGES))


def lfm_images(
    adapter: ModelAdapter, images: Sequence[Image.Image], for_labels: bool
) -> dict[str, Any]:
    """What LFM's own processor, which wants torchvision, makes of an image without tiles."""
    del adapter
    patches, shapes = [], []
    for image in images:
        if for_labels:
            width = height = SIDE * CELL
            image = padded_to_square(image, (128, 128, 128))
        else:
            width, height = size_without_tiles(*image.size)
        pixels = torch.tensor(list(image.resize((width, height), Image.BILINEAR).tobytes()))
        rows, columns = height // PATCH, width // PATCH
        cut = (pixels / 255 - 0.5) / 0.5
        cut = cut.view(rows, PATCH, columns, PATCH, 3).transpose(1, 2)
        patches.append(cut.reshape(rows * columns, -1))
        shapes.append([rows, columns])
    values = torch.nn.utils.rnn.pad_sequence(patches, batch_first=True)
    lengths = torch.tensor([len(own) for own in patches])
    return {
        "pixel_values": values,
        "pixel_attention_mask": (torch.arange(values.shape[1]) < lengths[:, None]).int(),
        "spatial_shapes": torch.tensor(shapes),
    }


def size_without_tiles(width: int, height: int) -> tuple[int, int]:
    """The stock processor's ``smart_resize``."""
    least, most = LEAST * CELL**2, MOST * CELL**2
    sides = [max(CELL, round(side / CELL) * CELL) for side in (width, height)]
    if math.prod(sides) > most:
        beta = math.sqrt(width * height / most)
        sides = [max(CELL, math.floor(side / beta / CELL) * CELL) for side in (width, height)]
    elif math.prod(sides) < least:
        beta = math.sqrt(least / (width * height))
        sides = [math.ceil(side * beta / CELL) * CELL for side in (width, height)]
    return sides[0], sides[1]


def lfm_grids(adapter: ModelAdapter, inputs: dict[str, Any]) -> list[GridShape]:
    """Patches of each image, merged two by two."""
    del adapter
    merged = CELL // PATCH
    return [GridShape(h // merged, w // merged) for h, w in inputs["spatial_shapes"].tolist()]


def lfm_cell_pixels(inputs: dict[str, Any], grid: GridShape) -> Tensor:
    """Patches of a (1, P, 3 * s * s) tensor, row by row, averaged two by two."""
    num_patches = grid.num_cells * (CELL // PATCH) ** 2
    patches = inputs["pixel_values"][0, :num_patches].mean(dim=1)
    rows = patches.view(1, -1, grid.width * (CELL // PATCH))
    return functional.adaptive_avg_pool2d(rows, grid)[0]
