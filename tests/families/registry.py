"""Families under contract: how to make a tiny random model of each, and how its stock class is fed.

A new family adds one entry to ``FAMILY_MODELS``; every test of this folder then runs on it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from data_contracts.profiles import DynamicGrid, ModelProfile
from sdrpn_core.geometry import GridShape
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.llava import LlavaAdapter
from sdrpn_core.models.qwen2_5_vl import Qwen2_5VlAdapter
from sdrpn_core.models.square import SquareAdapter
from tests.families.aya import tiny_aya_vision
from tests.families.compass import tiny_cohere_compass
from tests.families.deepseek import tiny_deepseek_vl, tiny_deepseek_vl_hybrid
from tests.families.gemma import gemma_cell_pixels, gemma_grids, gemma_images, gemma_masks
from tests.families.glm import glm_images, tiny_glm4v, tiny_glm4v_moe
from tests.families.internvl import tiny_internvl, tiny_qianfan_ocr
from tests.families.janus import tiny_janus
from tests.families.lfm import lfm_cell_pixels, lfm_grids, lfm_images, tiny_lfm2_vl
from tests.families.llavanext import llava_next_encoder, llava_next_images, tiny_llava_next
from tests.families.minicpm import (
    minicpmv_cell_pixels,
    minicpmv_grids,
    minicpmv_images,
    tiny_minicpmv4_6,
    tiny_minicpmv4_7,
)
from tests.families.mistral import mistral_grids, mistral_ids, mistral_images, tiny_mistral3
from tests.families.newline import newline_cells, newline_ids
from tests.families.onevision import onevision_images, tiny_llava_onevision
from tests.families.smolvlm import tiny_idefics3, tiny_smolvlm
from tests.families.squares import padded_to_square
from tests.tiny_gemma import MERGED, tiny_gemma3, tiny_gemma4, tiny_gemma4_unified
from tests.tiny_models import tiny_llava
from tests.tiny_qwen import (
    tiny_cosmos3_omni,
    tiny_qwen2_5_vl,
    tiny_qwen2_vl,
    tiny_qwen3_5,
    tiny_qwen3_5_moe,
    tiny_qwen3_vl,
    tiny_qwen3_vl_moe,
)

Inputs = dict[str, Any]


def image_ids(adapter: ModelAdapter, grid: GridShape) -> list[int]:
    """One image token a cell."""
    return [adapter.image_token_id] * grid.num_cells


def image_cells(adapter: ModelAdapter, ids: Tensor) -> Tensor:
    """All image tokens."""
    return ids == adapter.image_token_id


def image_encoder(model: Any) -> tuple[Any, str]:
    """The method that nearly every class has; DeepSeek-VL's have it in their inner model only."""
    return model if "get_image_features" in dir(model) else model.base_model, "get_image_features"


@dataclass(frozen=True)
class FamilyModel:
    """One family's tiny model and its oracles, which use stock code only."""

    build: Callable[[Path], ModelProfile]
    """Writes a tiny random model with tokenizer and image processor; returns its profile."""
    stock_images: Callable[[ModelAdapter, Sequence[Image.Image], bool], Inputs]
    """(adapter, images, for_labels) -> what the stock forward wants of the images."""
    stock_grids: Callable[[ModelAdapter, Inputs], list[GridShape]]
    """Grid of each image, by the stock model's own rules."""
    cell_pixels: Callable[[Inputs, GridShape], Tensor]
    """(h, w) mean pixel of each cell of the only image in the form that ``encoder`` gets it in."""
    image_ids: Callable[[ModelAdapter, GridShape], list[int]] = image_ids
    """Tokens that the stock processor writes for an image."""
    image_cells: Callable[[ModelAdapter, Tensor], Tensor] = image_cells
    """(adapter, (L,) tokens) -> (L,) bool: those that stand for cells."""
    encoder: Callable[[Any], tuple[Any, str]] = image_encoder
    """Stock model -> an object and its method that an adapter has images encoded by."""
    image_marks: str | None = None
    """Where the stock forward wants to be told which tokens are an image's."""
    stock_masks: Callable[[Any, Inputs], Any] | None = None
    """(stock model, inputs) -> the attention mask in place of that of its own forward pass."""
    generation: Inputs = field(default_factory=dict)
    """Further arguments of the stock ``generate``."""
    rounding: float = 1.0
    """How much more of it there is than in a decoder that attends in every layer."""


def stock_inputs(
    family: FamilyModel,
    adapter: ModelAdapter,
    question: str,
    images: Sequence[Image.Image],
    *,
    for_labels: bool = False,
    response: Sequence[int] = (),
) -> Inputs:
    """Inputs of the stock model for the profile's prompt, made without the adapter's own code.

    Args:
        family: the family.
        adapter: gives tokenizer, image processor and profile.
        question: question text.
        images: the image, then its crops.
        for_labels: on the grid of extraction and training.
        response: tokens to follow the prompt.
    """
    pixels = family.stock_images(adapter, images, for_labels)
    grids = family.stock_grids(adapter, pixels)
    assert len(grids) == len(images)
    text = adapter.profile.prompt.format(
        images=adapter.image_placeholders(len(images)), question=question
    )
    ids: list[int] = []
    for token in adapter.tokenizer(text).input_ids:
        is_image = token == adapter.image_token_id
        ids += family.image_ids(adapter, grids.pop(0)) if is_image else [token]
    input_ids = torch.tensor([[*ids, *response]])
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **pixels}
    if family.image_marks is not None:
        inputs[family.image_marks] = (input_ids == adapter.image_token_id).int()
    return inputs


def llava_images(adapter: ModelAdapter, images: Sequence[Image.Image], for_labels: bool) -> Inputs:
    """Padded to a square with the mean colour, as LLaVA-1.5 was trained."""
    del for_labels
    assert isinstance(adapter, LlavaAdapter)
    mean = tuple(round(255 * value) for value in adapter.image_processor.image_mean)
    squares = [padded_to_square(image, mean) for image in images]
    return dict(adapter.image_processor(squares, return_tensors="pt"))


def llava_grids(adapter: ModelAdapter, inputs: Inputs) -> list[GridShape]:
    """One grid for all images, as coarse as the model pools it."""
    config = adapter.model.config
    side = config.vision_config.image_size // config.vision_config.patch_size
    side = math.isqrt(getattr(config, "mm_tokens_per_image", side**2))
    side //= getattr(config, "downsample_factor", 1)
    return [GridShape(side, side)] * len(inputs["pixel_values"])


def internvl_images(
    adapter: ModelAdapter, images: Sequence[Image.Image], for_labels: bool
) -> Inputs:
    """One tile each, stretched to a square."""
    del for_labels
    inputs = adapter.image_processor(list(images), crop_to_patches=False, return_tensors="pt")
    return {"pixel_values": inputs["pixel_values"]}


def gemma3_images(adapter: ModelAdapter, images: Sequence[Image.Image], for_labels: bool) -> Inputs:
    """Stretched to a square, without further tiles."""
    del for_labels
    inputs = adapter.image_processor(list(images), return_tensors="pt")
    return {"pixel_values": inputs["pixel_values"]}


def smolvlm_images(
    adapter: ModelAdapter, images: Sequence[Image.Image], for_labels: bool
) -> Inputs:
    """One tile each, stretched to a square at once; without its first step, to four tiles' side."""
    del for_labels
    one_tile = {"do_resize": False, "do_image_splitting": False}
    return dict(adapter.image_processor([list(images)], return_tensors="pt", **one_tile))


def smolvlm_grids(adapter: ModelAdapter, inputs: Inputs) -> list[GridShape]:
    """As many tokens a tile as the stock model counts."""
    side = math.isqrt(adapter.model.model.image_seq_len)
    return [GridShape(side, side)] * inputs["pixel_values"].shape[1]


def smolvlm_cell_pixels(inputs: Inputs, grid: GridShape) -> Tensor:
    """Cells of a (1, 1, 3, H, W) tensor: the stock processor's, of one prompt with one image."""
    return square_cell_pixels({"pixel_values": inputs["pixel_values"][0]}, grid)


def internvl_grids(adapter: ModelAdapter, inputs: Inputs) -> list[GridShape]:
    """As many tokens a tile as the configuration says."""
    side = math.isqrt(adapter.model.config.image_seq_length)
    return [GridShape(side, side)] * len(inputs["pixel_values"])


def square_cell_pixels(inputs: Inputs, grid: GridShape) -> Tensor:
    """Cells of a (1, 3, H, W) tensor."""
    return functional.adaptive_avg_pool2d(inputs["pixel_values"].mean(dim=1), grid)[0]


def qwen_images(adapter: ModelAdapter, images: Sequence[Image.Image], for_labels: bool) -> Inputs:
    """A grey square of fixed size for labels; for answers what the stock processor makes of it."""
    assert isinstance(adapter, Qwen2_5VlAdapter)
    processor, cell = adapter.image_processor, 2 * adapter.image_processor.patch_size
    rule = adapter.profile.images.labels if for_labels else adapter.profile.images.answers
    if isinstance(rule, DynamicGrid):
        bounds = [number * cell**2 for number in (rule.min_cells, rule.max_cells)]
        edges = dict(zip(("shortest_edge", "longest_edge"), bounds, strict=True))
        return dict(processor(images, size=edges, return_tensors="pt"))
    assert rule is not None
    size = (rule.side * cell, rule.side * cell)
    grey = [padded_to_square(image, (127, 127, 127)) for image in images]
    squares = [square.resize(size, Image.BICUBIC) for square in grey]
    return dict(processor(squares, do_resize=False, return_tensors="pt"))


def qwen_grids(adapter: ModelAdapter, inputs: Inputs) -> list[GridShape]:
    """Patch grids, merged two by two."""
    del adapter
    return [GridShape(h // 2, w // 2) for _, h, w in inputs["image_grid_thw"].tolist()]


def qwen_cell_pixels(inputs: Inputs, grid: GridShape) -> Tensor:
    """Patches come in groups of four, one group a cell, cells in reading order."""
    return inputs["pixel_values"].reshape(grid.num_cells, -1).mean(dim=1).reshape(grid)


def deepseek_images(
    adapter: ModelAdapter, images: Sequence[Image.Image], for_labels: bool
) -> Inputs:
    """Padded to a square with the colour that the stock processor pads with, at full size."""
    del for_labels
    assert isinstance(adapter, SquareAdapter)
    processor = adapter.image_processor
    is_hybrid = "high_res_pixel_values" in processor.model_input_names
    fill = processor.high_res_background_color if is_hybrid else processor.background_color
    return dict(processor([padded_to_square(image, fill) for image in images], return_tensors="pt"))


FAMILY_MODELS: dict[str, FamilyModel] = {
    "aya_vision": FamilyModel(tiny_aya_vision, internvl_images, llava_grids, square_cell_pixels),
    "cohere_compass": FamilyModel(
        tiny_cohere_compass,
        qwen_images,
        qwen_grids,
        qwen_cell_pixels,
        image_marks="mm_token_type_ids",
    ),
    "cosmos3_omni": FamilyModel(
        tiny_cosmos3_omni,
        qwen_images,
        qwen_grids,
        qwen_cell_pixels,
        image_marks="mm_token_type_ids",
    ),
    "deepseek_vl": FamilyModel(tiny_deepseek_vl, deepseek_images, llava_grids, square_cell_pixels),
    "deepseek_vl_hybrid": FamilyModel(
        tiny_deepseek_vl_hybrid, deepseek_images, llava_grids, square_cell_pixels
    ),
    "gemma3": FamilyModel(
        tiny_gemma3, gemma3_images, llava_grids, square_cell_pixels, image_marks="token_type_ids"
    ),
    "gemma4": FamilyModel(
        tiny_gemma4,
        partial(gemma_images, patches_a_side=1),
        partial(gemma_grids, pieces_a_side=MERGED),
        partial(gemma_cell_pixels, pieces_a_side=MERGED),
        image_marks="mm_token_type_ids",
    ),
    "gemma4_unified": FamilyModel(
        tiny_gemma4_unified,
        partial(gemma_images, patches_a_side=MERGED),
        partial(gemma_grids, pieces_a_side=1),
        partial(gemma_cell_pixels, pieces_a_side=1),
        image_marks="mm_token_type_ids",
        stock_masks=gemma_masks,
        generation={"cache_implementation": "static", "disable_compile": True},
    ),
    "glm4v": FamilyModel(
        tiny_glm4v, glm_images, qwen_grids, qwen_cell_pixels, image_marks="mm_token_type_ids"
    ),
    "glm4v_moe": FamilyModel(
        tiny_glm4v_moe, glm_images, qwen_grids, qwen_cell_pixels, image_marks="mm_token_type_ids"
    ),
    "idefics3": FamilyModel(tiny_idefics3, smolvlm_images, smolvlm_grids, smolvlm_cell_pixels),
    "internvl": FamilyModel(tiny_internvl, internvl_images, internvl_grids, square_cell_pixels),
    "janus": FamilyModel(tiny_janus, deepseek_images, llava_grids, square_cell_pixels),
    "lfm2_vl": FamilyModel(tiny_lfm2_vl, lfm_images, lfm_grids, lfm_cell_pixels),
    "llava": FamilyModel(tiny_llava, llava_images, llava_grids, square_cell_pixels),
    "llava_next": FamilyModel(
        tiny_llava_next,
        llava_next_images,
        llava_grids,
        square_cell_pixels,
        image_ids=newline_ids,
        image_cells=newline_cells,
        encoder=llava_next_encoder,
    ),
    "llava_onevision": FamilyModel(
        tiny_llava_onevision,
        onevision_images,
        llava_grids,
        square_cell_pixels,
        image_ids=newline_ids,
        image_cells=newline_cells,
    ),
    "minicpmv4_6": FamilyModel(
        tiny_minicpmv4_6, minicpmv_images, minicpmv_grids, minicpmv_cell_pixels, rounding=30.0
    ),
    "minicpmv4_7": FamilyModel(
        tiny_minicpmv4_7,
        minicpmv_images,
        minicpmv_grids,
        minicpmv_cell_pixels,
        image_marks="mm_token_type_ids",
        rounding=30.0,
    ),
    "mistral3": FamilyModel(
        tiny_mistral3, mistral_images, mistral_grids, square_cell_pixels, image_ids=mistral_ids
    ),
    "qianfan_ocr": FamilyModel(
        tiny_qianfan_ocr, internvl_images, internvl_grids, square_cell_pixels
    ),
    "qwen2_vl": FamilyModel(
        tiny_qwen2_vl, qwen_images, qwen_grids, qwen_cell_pixels, image_marks="mm_token_type_ids"
    ),
    "qwen2_5_vl": FamilyModel(
        tiny_qwen2_5_vl, qwen_images, qwen_grids, qwen_cell_pixels, image_marks="mm_token_type_ids"
    ),
    "qwen3_vl": FamilyModel(
        tiny_qwen3_vl, qwen_images, qwen_grids, qwen_cell_pixels, image_marks="mm_token_type_ids"
    ),
    "qwen3_vl_moe": FamilyModel(
        tiny_qwen3_vl_moe,
        qwen_images,
        qwen_grids,
        qwen_cell_pixels,
        image_marks="mm_token_type_ids",
    ),
    "qwen3_5": FamilyModel(
        # States come out in single precision, and depend on where a pass begins.
        tiny_qwen3_5,
        qwen_images,
        qwen_grids,
        qwen_cell_pixels,
        image_marks="mm_token_type_ids",
        rounding=30.0,
    ),
    "qwen3_5_moe": FamilyModel(
        tiny_qwen3_5_moe,
        qwen_images,
        qwen_grids,
        qwen_cell_pixels,
        image_marks="mm_token_type_ids",
        rounding=30.0,
    ),
    "smolvlm": FamilyModel(tiny_smolvlm, smolvlm_images, smolvlm_grids, smolvlm_cell_pixels),
}
