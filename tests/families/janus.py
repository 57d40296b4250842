"""A tiny random Janus, laid out on disk as the hub lays it."""

from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import JanusConfig, JanusForConditionalGeneration
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from data_contracts.profiles import ModelProfile
from tests.tiny_models import (
    SPECIAL,
    llama_profile,
    perturb_constants,
    save_model,
    tiny_llama,
    tiny_tokenizer,
)

SIDE = 40
"""Of the canvas in pixels; patches of 8 give a 5x5 grid."""
MARKERS = ["<begin_of_image>", "<end_of_image>"]


def tiny_janus(directory: Path) -> ModelProfile:
    """Write it, and return its profile."""
    torch.manual_seed(0)
    text = tiny_llama(2, more_tokens=len(MARKERS))
    config = JanusConfig(
        text_config=text,
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "mlp_ratio": 1.5,
            "image_size": SIDE,
            "patch_size": 8,
            "projection_dim": text.hidden_size,
            "initializer_range": 0.2,
        },
        # It makes images, and is asked for none.
        vq_config={
            "embed_dim": 4,
            "num_embeddings": 8,
            "latent_channels": 32,
            "base_channels": 32,
            "channel_multiplier": [1],
            "num_res_blocks": 1,
            "projection_dim": 8,
            "image_token_embed_dim": 8,
        },
        image_token_id=SPECIAL.index("<image>"),
        tie_word_embeddings=False,
    )
    model = JanusForConditionalGeneration(config)
    perturb_constants(model.model.vision_model)
    save_model(model, directory)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    tokenizer.save_pretrained(directory)
    JanusImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(directory)
    return llama_profile("janus", directory)
