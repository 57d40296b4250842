"""A tiny random North Micro Vision, laid out on disk as the hub lays it."""

import json
from pathlib import Path

import torch
from transformers import CohereCompassConfig, CohereCompassForConditionalGeneration

from data_contracts.profiles import ModelProfile
from sdrpn_core.models.cohere_compass import CohereCompassAdapter
from tests.tiny_models import perturb_constants
from tests.tiny_qwen import (
    DEEPSTACK,
    PATCH,
    PROCESSOR_3,
    TOWER_3,
    decoder_sizes,
    qwen_profile,
    qwen_tokenizer,
    save_answering,
)

SPECIAL = [
    "<PAD>",
    "<BOS_TOKEN>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|VISION_START|>",
    "<|VISION_END|>",
    "<|IMAGE_PAD|>",
    "<|VIDEO_PAD|>",
]


def tiny_cohere_compass(directory: Path) -> ModelProfile:
    """Write it, and return its profile: every fourth layer turns nothing and sees all."""
    torch.manual_seed(0)
    angles = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    sizes = decoder_sizes(SPECIAL)
    window, full = "sliding_attention", "full_attention"
    kinds = [window, window, window, full]
    config = CohereCompassConfig(
        text_config=sizes
        | {
            "head_dim": 16,
            "layer_types": (kinds * 2)[: sizes["num_hidden_layers"]],
            "sliding_window": 20,
            "rope_parameters": {window: angles, full: None},
            "logit_scale": 0.25,
        },
        vision_config=TOWER_3 | DEEPSTACK | {"initializer_range": 0.25},
        image_token_id=SPECIAL.index("<|IMAGE_PAD|>"),
        video_token_id=SPECIAL.index("<|VIDEO_PAD|>"),
        vision_start_token_id=SPECIAL.index("<|VISION_START|>"),
        vision_end_token_id=SPECIAL.index("<|VISION_END|>"),
    )
    model = CohereCompassForConditionalGeneration(config)
    perturb_constants(model)
    tokenizer = qwen_tokenizer(SPECIAL, end="<|END_OF_TURN_TOKEN|>", pad="<PAD>")
    save_answering(model, tokenizer, directory, "<|END_OF_TURN_TOKEN|>")
    cut = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": 2}
    kind = {"image_processor_type": "CohereCompassImageProcessor"}
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR_3 | cut | kind))
    return qwen_profile("cohere_compass", directory, CohereCompassAdapter.defaults.prompt)
