"""Tiny random InternVL models, laid out on disk as the hub lays them: of version 3, of 3.5, and as
Qianfan-OCR."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    QianfanOCRConfig,
    QianfanOCRForConditionalGeneration,
    QianfanOCRVisionConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from data_contracts.profiles import ImageSettings, ModelProfile
from sdrpn_core.models.internvl import InternVlAdapter
from tests.tiny_models import perturb_constants
from tests.tiny_qwen import decoder_sizes, qwen_profile, qwen_tokenizer, save_answering

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
SIDE = 40
"""Of the canvas in pixels; patches of 4, merged two by two, give a 5x5 grid."""
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "attention_bias": True,
    "image_size": SIDE,
    "patch_size": 4,
    "layer_scale_init_value": 1.0,
}


def tiny_internvl(directory: Path) -> ModelProfile:
    """As InternVL3: Qwen2's decoder."""
    return _write(Qwen2Config(**decoder_sizes(SPECIAL)), directory)


def tiny_internvl_qwen3(directory: Path) -> ModelProfile:
    """As InternVL3.5: Qwen3's decoder, with normed queries and keys and a head size of its own."""
    return _write(Qwen3Config(**decoder_sizes(SPECIAL), head_dim=16), directory)


def tiny_internvl_qwen3_moe(directory: Path) -> ModelProfile:
    """As InternVL3.5-30B-A3B: Qwen3's decoder with experts."""
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return _write(Qwen3MoeConfig(**decoder_sizes(SPECIAL), **experts, head_dim=16), directory)


def tiny_qianfan_ocr(directory: Path) -> ModelProfile:
    """Qwen3's decoder."""
    torch.manual_seed(0)
    text = Qwen3Config(**decoder_sizes(SPECIAL), head_dim=16)
    config = QianfanOCRConfig(**_settings(QianfanOCRVisionConfig(**_TOWER), text))
    return _save("qianfan_ocr", QianfanOCRForConditionalGeneration(config), directory)


def _write(decoder: PreTrainedConfig, directory: Path) -> ModelProfile:
    torch.manual_seed(0)
    config = InternVLConfig(**_settings(InternVLVisionConfig(**_TOWER), decoder))
    return _save("internvl", InternVLForConditionalGeneration(config), directory)


def _settings(tower: PreTrainedConfig, decoder: PreTrainedConfig) -> dict[str, Any]:
    return {
        "vision_config": tower,
        "text_config": decoder,
        "image_token_id": SPECIAL.index("<IMG_CONTEXT>"),
        "image_seq_length": 25,
        "tie_word_embeddings": False,
    }


def _save(family: str, model: PreTrainedModel, directory: Path) -> ModelProfile:
    perturb_constants(model, "cls_token", "position_embeddings")
    save_answering(model, qwen_tokenizer(SPECIAL), directory, "<|im_end|>")
    GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(directory)
    return qwen_profile(family, directory, InternVlAdapter.defaults.prompt, ImageSettings())
