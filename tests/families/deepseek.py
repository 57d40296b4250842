"""Tiny random DeepSeek-VL models of both stock classes, laid out on disk as the hub lays them."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    DeepseekVLHybridConfig,
    DeepseekVLHybridForConditionalGeneration,
    SamVisionConfig,
)
from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import (
    DeepseekVLImageProcessorPil,
)
from transformers.models.deepseek_vl_hybrid.image_processing_pil_deepseek_vl_hybrid import (
    DeepseekVLHybridImageProcessorPil,
)

from data_contracts.profiles import ModelProfile
from tests.tiny_models import (
    NUM_HEADS,
    SPECIAL,
    llama_profile,
    save_model,
    tiny_llama,
    tiny_siglip,
    tiny_tokenizer,
)

LOW_SIDE, HIGH_SIDE = 40, 64
"""Inputs of the SigLIP and the SAM tower in pixels; SigLIP's patches of 8 give a 5x5 grid."""
HALF = [0.5, 0.5, 0.5]


def tiny_deepseek_vl(directory: Path, *, seed: int = 0) -> ModelProfile:
    """Write a tiny random model of the 1.3B's class and return its profile."""
    torch.manual_seed(seed)
    config = DeepseekVLConfig(
        text_config=tiny_llama(NUM_HEADS), vision_config=tiny_siglip(LOW_SIDE), **_common()
    )
    DeepseekVLImageProcessorPil(
        image_mean=HALF, image_std=HALF, size={"height": LOW_SIDE, "width": LOW_SIDE}
    ).save_pretrained(directory)
    return _save(DeepseekVLForConditionalGeneration(config), directory, "deepseek_vl")


def tiny_deepseek_vl_hybrid(directory: Path, *, seed: int = 0) -> ModelProfile:
    """Write a tiny random model of the 7B's class and return its profile."""
    torch.manual_seed(seed)
    sam = SamVisionConfig(
        hidden_size=24,
        output_channels=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=HIGH_SIDE,
        patch_size=8,
        mlp_dim=32,
        window_size=3,
        global_attn_indexes=[1, 2],
        num_pos_feats=8,
    )
    config = DeepseekVLHybridConfig(
        text_config=tiny_llama(NUM_HEADS),
        vision_config=tiny_siglip(LOW_SIDE),
        high_res_vision_config=sam,
        **_common(),
    )
    # As the 7B's: bilinear for SigLIP with mean 0.5, bicubic for SAM with CLIP's mean.
    DeepseekVLHybridImageProcessorPil(
        image_mean=HALF,
        image_std=HALF,
        resample=2,
        size={"height": LOW_SIDE, "width": LOW_SIDE},
        high_res_size={"height": HIGH_SIDE, "width": HIGH_SIDE},
    ).save_pretrained(directory)
    model = DeepseekVLHybridForConditionalGeneration(config)
    # Zero at initialisation: SAM's early global features would go untested.
    model.model.high_res_vision_alpha.data.fill_(0.5)
    return _save(model, directory, "deepseek_vl_hybrid")


def _common() -> dict[str, Any]:
    return {"image_token_id": SPECIAL.index("<image>"), "tie_word_embeddings": False}


def _save(model: Any, directory: Path, family: str) -> ModelProfile:
    save_model(model, directory)
    tiny_tokenizer().save_pretrained(directory)
    return llama_profile(family, directory)
