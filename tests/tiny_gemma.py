"""Tiny random Gemma models of the stock classes, with the real chat markers."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from data_contracts.profiles import DynamicGrid, ImageSettings, ModelProfile, SquareGrid
from sdrpn_core.models.gemma3 import Gemma3Adapter
from sdrpn_core.models.gemma4_unified import Gemma4UnifiedAdapter
from tests.tiny_models import WORDS
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


def tiny_gemma4_unified(directory: Path) -> ModelProfile:
    """Layers with a window, and two without, whose heads are larger and whose values are keys."""
    torch.manual_seed(0)
    text = {
        "layer_types": _LAYERS,
        "sliding_window": WINDOW,
        "head_dim": 8,
        "global_head_dim": 16,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "final_logit_softcapping": 8.0,
        "pad_token_id": SPECIAL.index("<pad>"),
    }
    vision = {
        "patch_size": PATCH,
        "pooling_kernel_size": MERGED,
        "mm_embed_dim": 32,
        "output_proj_dims": 32,
        "mm_posemb_size": 128,
        "initializer_range": 0.25,
    }
    config = Gemma4UnifiedConfig(
        text_config=decoder_sizes(SPECIAL) | text,
        vision_config=vision,
        audio_config=None,
        boi_token_id=SPECIAL.index("<|image>"),
        image_token_id=SPECIAL.index("<|image|>"),
        eoi_token_id=SPECIAL.index("<image|>"),
        tie_word_embeddings=True,
    )
    model = Gemma4UnifiedForConditionalGeneration(config)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.fill_(0.8)  # real ones are not one
    _save(model, directory, SPECIAL)
    # As on the hub: within the processor's file, under a name that is for torchvision alone.
    processor = {"image_processor_type": "Gemma4UnifiedImageProcessor", "patch_size": PATCH}
    processor |= {"pooling_kernel_size": MERGED, "max_soft_tokens": 280}
    (directory / "processor_config.json").write_text(json.dumps({"image_processor": processor}))
    return qwen_profile(
        "gemma4_unified", directory, Gemma4UnifiedAdapter.defaults.prompt, images=IMAGES
    )


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
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name or "_ln" in name:
            # Around one, but in models that add one to them.
            mean = parameter.mean().item() if name.endswith("weight") else 0.0
            nn.init.normal_(parameter, mean=mean, std=0.2)
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
