"""Tiny random models of the stock classes, saved and loaded as a user's model would be."""

import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from data_contracts.enums import QuestionKind
from data_contracts.profiles import HeadSelection, ImageSettings, ModelProfile, RpnShape
from data_contracts.sink_rules import SinkHeads, SinkLayerMean

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
WORDS = ["USER:", "ASSISTANT:", "what", "is", "it", "the", "red", "blue", "small", "word", "?", "a"]

NUM_LAYERS = 6
NUM_HEADS = 4


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Whitespace word-level tokenizer with LLaVA's special tokens."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return with_special_tokens(tokenizer)


def with_special_tokens(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """With LLaVA's, which it knows as tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )


def tiny_llava(
    directory: Path, *, num_key_value_heads: int = 2, seed: int = 0, side: int = 40
) -> ModelProfile:
    """Write a tiny random LLaVA (6 layers, 4 heads, 5x5 grid) and return its profile.

    Args:
        directory: to write to.
        num_key_value_heads: of the text model.
        seed: of the weights.
        side: of the canvas in pixels; of one from 41 to 47 the tower drops the rest.
    """
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=tiny_clip(side),
        text_config=tiny_llama(num_key_value_heads),
        image_token_id=SPECIAL.index("<image>"),
        vision_feature_layer=-1,
        image_seq_length=25,
    )
    save_model(LlavaForConditionalGeneration(config), directory)
    tiny_tokenizer().save_pretrained(directory)
    CLIPImageProcessorPil(
        size={"height": side, "width": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(directory)
    return llama_profile("llava", directory)


def perturb_constants(model: nn.Module, *also: str) -> None:
    """Real biases and norm weights are not zeros and ones, or nothing tells whether they are used.

    Args:
        model: as it is initialised.
        also: ends of the names of other parameters that are zeros.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", *also)) or "norm" in name or "_ln" in name:
            # Around one, but in models that add one to them.
            mean = parameter.mean().item() if name.endswith("weight") else 0.0
            nn.init.normal_(parameter, mean=mean, std=0.2)


def tiny_clip(side: int) -> CLIPVisionConfig:
    """Vision tower of LLaVA's; patches of 8 pixels."""
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=side,
        patch_size=8,
        projection_dim=32,
    )


def tiny_siglip(side: int, patch_side: int = 8) -> SiglipVisionConfig:
    """Vision tower of families that look through SigLIP."""
    return SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=side,
        patch_size=patch_side,
        vision_use_head=False,
    )


def tiny_llama(num_key_value_heads: int, *, more_tokens: int = 0) -> LlamaConfig:
    """The text model of families whose decoder is Llama's."""
    return LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS) + more_tokens,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=num_key_value_heads,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        # Random models attend almost evenly; a wide init makes attention rows differ.
        initializer_range=0.25,
    )


def save_model(model: Any, directory: Path) -> None:
    """Write a model whose text model is ``tiny_llama``'s."""
    # A louder end token makes answers end at different lengths, as real ones do.
    model.lm_head.weight.data[2] *= 2
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    model.save_pretrained(directory)


def llama_profile(
    family: str, directory: Path, images: ImageSettings | None = None
) -> ModelProfile:
    """Profile of a model whose text model is ``tiny_llama``'s."""
    heads = HeadSelection(grounding={2: (0, 3), 4: (1,)}, sink=SinkHeads(heads={1: (2,)}))
    return ModelProfile(
        name=f"tiny-{family}",
        family=family,
        model_id=str(directory),
        num_layers=NUM_LAYERS,
        num_heads=NUM_HEADS,
        prompt="USER: {images} {question} ASSISTANT:",
        images=images or ImageSettings(),
        heads={
            QuestionKind.NATURAL: heads,
            QuestionKind.TEXTUAL: HeadSelection(grounding={3: (2,)}, sink=SinkLayerMean(layer=0)),
        },
        rpn=RpnShape(branch_layer=2, depth=3),
        source="random weights",
    )


def with_text_model(
    profile: ModelProfile, folder: Path, kind: str, **settings: object
) -> ModelProfile:
    """Write a LLaVA with another text model, of the same sizes and with random weights."""
    config = LlavaConfig.from_pretrained(profile.model_id)
    text = config.text_config.to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    kept += ("num_attention_heads", "num_key_value_heads")
    kept += ("bos_token_id", "eos_token_id", "pad_token_id")
    sizes = {name: text[name] for name in kept}
    config.text_config = CONFIG_MAPPING[kind](**{**sizes, **settings})
    shutil.copytree(profile.model_id, folder, dirs_exist_ok=True)
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="eager")
    model.save_pretrained(folder)
    return profile.model_copy(update={"model_id": str(folder)})


def with_tower(
    profile: ModelProfile, folder: Path, kind: type[PreTrainedConfig], strategy: str
) -> ModelProfile:
    """Write a LLaVA with another vision tower, of the same sizes and with random weights."""
    config = LlavaConfig.from_pretrained(profile.model_id)
    vision = config.vision_config.to_dict()
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    kept += ("image_size", "patch_size")
    config.vision_config = kind(**{name: vision[name] for name in kept})
    config.vision_feature_select_strategy = strategy
    shutil.copytree(profile.model_id, folder, dirs_exist_ok=True)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return profile.model_copy(update={"model_id": str(folder)})
