"""Tiny random Gemma models of the stock classes, with the real chat markers."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from data_contracts.profiles import DynamicGrid, ImageSettings, ModelProfile, SquareGrid
from sdrpn_core.models.gemma import AnyGemma4Adapter
from sdrpn_core.models.gemma3 import Gemma3Adapter
from tests.tiny_models import WORDS, perturb_constants
from tests.tiny_qwen import decoder_sizes, qwen_profile

SPECIAL = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<|turn>",
    "<turn|>",
    "<|image>",
    "<|image|>",
    "<image|>",
    "<|channel>",
    "<channel|>",
]
SPECIAL_3 = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<image_soft_token>",
    "<end_of_image>",
]
PATCH, MERGED = 2, 3
"""Pixels of a patch's side, and patches of a cell's."""
WINDOW = 12
"""Tokens: fewer than an image has."""
IMAGES = ImageSettings(
    fill=(127, 127, 127),
    labels=SquareGrid(side=5),
    answers=DynamicGrid(min_cells=20, max_cells=20),
)
_LAYERS = [*["sliding_attention"] * 4, "full_attention", "sliding_attention", "full_attention"]
_TEXT_4 = {
    "layer_types": _LAYERS,
    "sliding_window": WINDOW,
    "head_dim": 8,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "final_logit_softcapping": 8.0,
    "pad_token_id": SPECIAL.index("<pad>"),
}
"""Layers with a window, and two without, whose heads are larger and whose values are keys."""
_MIXTURE = {
    "enable_moe_block": True,
    "num_experts": 6,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
}


def tiny_gemma4(directory: Path) -> ModelProfile:
    """As 26B-A4B: a tower over patches, and experts beside the dense network of every layer."""
    return tiny_gemma4_of(directory, _MIXTURE)


def tiny_gemma4_of(directory: Path, text: dict[str, Any]) -> ModelProfile:
    """With other settings of its text model; dense without any.

    Args:
        directory: where it is written to.
        text: over those of the family.
    """
    torch.manual_seed(5)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "patch_size": PATCH,
        "pooling_kernel_size": MERGED,
        "position_embedding_size": 384,
        "standardize": True,
        "initializer_range": 0.1,
    }
    plain = _TEXT_4 | {"use_bidirectional_attention": "vision", "hidden_size_per_layer_input": 0}
    config = Gemma4Config(**_parts(plain | text, tower))
    model = Gemma4ForConditionalGeneration(config)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("position_embedding_table", "std_bias")):
            nn.init.normal_(value, std=0.5)
        elif name.endswith("k_norm.weight"):
            nn.init.constant_(value, 0.35)  # nothing else scales products of queries and keys
        elif name.endswith("router.proj.weight"):
            nn.init.normal_(value, std=2.0)  # of states of length one: else experts are all alike
        elif name.endswith(("scale", "scalar")) and "embed" not in name:
            nn.init.uniform_(value, 0.6, 1.2)  # of layers, routers, experts: real ones are not one
    return _saved_gemma4("gemma4", model, directory)


def tiny_gemma4_unified(directory: Path) -> ModelProfile:
    """Cells go into the decoder by one projection."""
    torch.manual_seed(0)
    vision = {
        "patch_size": PATCH,
        "pooling_kernel_size": MERGED,
        "mm_embed_dim": 32,
        "output_proj_dims": 32,
        "mm_posemb_size": 128,
        "initializer_range": 0.25,
    }
    config = Gemma4UnifiedConfig(**_parts(_TEXT_4, vision))
    model = Gemma4UnifiedForConditionalGeneration(config)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.fill_(0.8)  # real ones are not one
    return _saved_gemma4("gemma4_unified", model, directory)


def _parts(text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    """Of a configuration: what all sizes of Gemma 4 name."""
    return {
        "text_config": decoder_sizes(SPECIAL) | text,
        "vision_config": vision,
        "audio_config": None,
        "boi_token_id": SPECIAL.index("<|image>"),
        "image_token_id": SPECIAL.index("<|image|>"),
        "eoi_token_id": SPECIAL.index("<image|>"),
        "tie_word_embeddings": True,
    }


def _saved_gemma4(family: str, model: PreTrainedModel, directory: Path) -> ModelProfile:
    _save(model, directory, SPECIAL)
    # As on the hub: within the processor's file, under a name that is for torchvision alone.
    kind = {"gemma4": "Gemma4ImageProcessor", "gemma4_unified": "Gemma4UnifiedImageProcessor"}
    processor = {"image_processor_type": kind[family], "patch_size": PATCH}
    processor |= {"pooling_kernel_size": MERGED, "max_soft_tokens": 280}
    (directory / "processor_config.json").write_text(json.dumps({"image_processor": processor}))
    return qwen_profile(family, directory, AnyGemma4Adapter.defaults.prompt, images=IMAGES)


def tiny_gemma3(directory: Path) -> ModelProfile:
    """A tower of 10 x 10 patches pooled to 5 x 5; all layers see images whole, most in a window."""
    torch.manual_seed(0)
    text = {
        "layer_types": _LAYERS,
        "sliding_window": WINDOW,
        "head_dim": 8,
        "query_pre_attn_scalar": 12,
        "pad_token_id": SPECIAL_3.index("<pad>"),
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 40,
        "patch_size": 4,
        "vision_use_head": False,
    }
    config = Gemma3Config(
        text_config=decoder_sizes(SPECIAL_3) | text,
        vision_config=vision,
        mm_tokens_per_image=25,
        boi_token_index=SPECIAL_3.index("<start_of_image>"),
        image_token_index=SPECIAL_3.index("<image_soft_token>"),
        eoi_token_index=SPECIAL_3.index("<end_of_image>"),
        tie_word_embeddings=True,
    )
    model = Gemma3ForConditionalGeneration(config)
    nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    _save(model, directory, SPECIAL_3)
    size = {"height": 40, "width": 40}
    processor = {"image_processor_type": "Gemma3ImageProcessor", "size": size}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return qwen_profile("gemma3", directory, Gemma3Adapter.defaults.prompt, images=ImageSettings())


def _save(model: PreTrainedModel, directory: Path, special: list[str]) -> None:
    """Write weights and tokenizer."""
    perturb_constants(model)
    end = 4
    model.get_output_embeddings().weight.data[end] *= 2  # answers of different lengths
    model.generation_config.eos_token_id = [1, end]
    model.generation_config.pad_token_id = 0
    model.save_pretrained(directory)
    gemma_tokenizer(special).save_pretrained(directory)


def gemma_tokenizer(special: list[str]) -> PreTrainedTokenizerFast:
    """Word-level tokenizer with Gemma's markers."""
    vocabulary = {word: index for index, word in enumerate([*special, "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=special,
    )
