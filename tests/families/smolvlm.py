"""Tiny random models of SmolVLM's and Idefics3's classes, laid out on disk as the hub lays them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from data_contracts.profiles import ModelProfile
from tests.tiny_models import SPECIAL, llama_profile, save_model, tiny_llama, tiny_tokenizer

SIDE = 60
"""Of the canvas in pixels: patches of 4, merged three by three, give a 5x5 grid."""
MARKERS = ["<fake_token_around_image>", "<global-img>"]


def tiny_smolvlm(directory: Path) -> ModelProfile:
    """As SmolVLM2."""
    torch.manual_seed(0)
    config = SmolVLMConfig(vision_config=SmolVLMVisionConfig(**_tower()), **_sizes())
    SmolVLMImageProcessorPil(**_tiles()).save_pretrained(directory)
    return _save(SmolVLMForConditionalGeneration(config), directory, "smolvlm")


def tiny_idefics3(directory: Path) -> ModelProfile:
    """As the first SmolVLM."""
    torch.manual_seed(0)
    config = Idefics3Config(vision_config=Idefics3VisionConfig(**_tower()), **_sizes())
    Idefics3ImageProcessorPil(**_tiles()).save_pretrained(directory)
    return _save(Idefics3ForConditionalGeneration(config), directory, "idefics3")


def _tower() -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 4,
        "initializer_range": 0.2,
    }


def _sizes() -> dict[str, Any]:
    text = tiny_llama(2, more_tokens=len(MARKERS))
    image_token = SPECIAL.index("<image>")
    return {"text_config": text, "scale_factor": 3, "image_token_id": image_token}


def _tiles() -> dict[str, Any]:
    return {"size": {"longest_edge": 4 * SIDE}, "max_image_size": {"longest_edge": SIDE}}


def _save(model: Any, directory: Path, family: str) -> ModelProfile:
    save_model(model, directory)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    tokenizer.save_pretrained(directory)
    return llama_profile(family, directory)
