"""Tiny random models of GLM's vision classes, laid out on disk as the hub lays them, and how the
stock class is fed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import AddedToken
from torch import nn
from transformers import (
    BaseImageProcessor,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil

from data_contracts.profiles import DynamicGrid, ImageSettings, ModelProfile, SquareGrid
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.glm4v import Glm4vAdapter
from tests.families.squares import mean_squares
from tests.tiny_qwen import decoder_sizes, qwen_profile, qwen_tokenizer, save_answering

SPECIAL = [
    "<|endoftext|>",
    "[gMASK]",
    "<sop>",
    "<|user|>",
    "<|assistant|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|image|>",
    "<|video|>",
]
MARKS = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "/nothink",
    "<|begin_of_box|>",
    "<|end_of_box|>",
]
"""Tokens of their own which the tokenizer does not take for special."""
PATCH, CELL = 4, 8
FRAMES = 2
IMAGES = ImageSettings(labels=SquareGrid(side=5), answers=DynamicGrid(min_cells=4, max_cells=30))
_TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "out_hidden_size": 48,
    "intermediate_size": 40,
    "image_size": 24,
    "patch_size": PATCH,
    "temporal_patch_size": FRAMES,
    "initializer_range": 0.25,
}
_EXPERTS = {
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1,
}


def tiny_glm4v(directory: Path) -> ModelProfile:
    """As GLM-4.1V: half of a head is turned, in pairs."""
    torch.manual_seed(0)
    text = _decoder() | {"rope_parameters": _rotary([1, 1, 1])}
    model = Glm4vForConditionalGeneration(Glm4vConfig(text_config=text, **_outer()))
    return _write("glm4v", model, Glm4vImageProcessorPil, directory)


def tiny_glm4v_moe(directory: Path) -> ModelProfile:
    """As GLM-4.6V: heads of a size of their own, turned in halves; experts behind layer 0."""
    torch.manual_seed(0)
    text = _decoder() | _EXPERTS | {"rope_parameters": _rotary([2, 1, 1]), "head_dim": 16}
    # Nothing norms its queries and keys: with wider weights, rounding decides among experts.
    text["initializer_range"] = 0.15
    model = Glm4vMoeForConditionalGeneration(Glm4vMoeConfig(text_config=text, **_outer()))
    for name, values in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            nn.init.normal_(values, std=0.2)
    return _write("glm4v_moe", model, Glm46VImageProcessorPil, directory)


def glm_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer with GLM's markers."""
    tokenizer = qwen_tokenizer(SPECIAL, end="<|user|>")
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    return tokenizer


def glm_images(
    adapter: ModelAdapter, images: Sequence[Image.Image], for_labels: bool
) -> dict[str, Any]:
    """A square of fixed size for labels; for answers what the stock processor makes of it.

    It holds an image twice against its bounds: once for each frame of a patch.
    """
    processor = adapter.image_processor
    rule = adapter.profile.images.labels if for_labels else adapter.profile.images.answers
    if isinstance(rule, DynamicGrid):
        bounds = [number * CELL**2 * FRAMES for number in (rule.min_cells, rule.max_cells)]
        edges = dict(zip(("shortest_edge", "longest_edge"), bounds, strict=True))
        return dict(processor(list(images), size=edges, return_tensors="pt"))
    assert rule is not None
    squares = mean_squares(processor, images, rule.side * CELL)
    return dict(processor(squares, do_resize=False, return_tensors="pt"))


def _rotary(sections: list[int]) -> dict[str, Any]:
    return {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": sections,
        "partial_rotary_factor": 0.5,
    }


def _decoder() -> dict[str, Any]:
    sizes = decoder_sizes(SPECIAL)
    return sizes | {"vocab_size": sizes["vocab_size"] + len(MARKS)}


def _outer() -> dict[str, Any]:
    return {
        "vision_config": _TOWER,
        "image_token_id": SPECIAL.index("<|image|>"),
        "video_token_id": SPECIAL.index("<|video|>"),
        "image_start_token_id": SPECIAL.index("<|begin_of_image|>"),
        "image_end_token_id": SPECIAL.index("<|end_of_image|>"),
    }


def _write(
    family: str, model: PreTrainedModel, processor: type[BaseImageProcessor], directory: Path
) -> ModelProfile:
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            # As ``perturb_constants``, but with small norms in the tower: rounding grows with them.
            nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.2)
    save_answering(model, glm_tokenizer(), directory, "<|user|>", "<|endoftext|>")
    cut = {"patch_size": PATCH, "temporal_patch_size": FRAMES, "merge_size": CELL // PATCH}
    processor(**cut).save_pretrained(directory)
    return qwen_profile(family, directory, Glm4vAdapter.defaults.prompt, IMAGES)
