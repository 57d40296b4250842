"""Random Qwen2.5-VL-7B and Qwen3-VL-4B, as large as they are, or tiny ones of the same make."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from benchmarks.random_weights import random_weights
from data_contracts.enums import QuestionKind
from data_contracts.profiles import HeadSelection, ModelProfile
from data_contracts.sink_rules import SinkLayerMean
from sdrpn_core.models.families import FAMILIES
from sdrpn_core.models.profiles import load_profile
from sdrpn_core.models.qwen2_5_vl import Qwen2_5VlAdapter
from tests.tiny_qwen import SPECIAL, qwen_tokenizer

Sizes = dict[str, Any]
NUM_TINY_LAYERS = 8

_TOKENS: Sizes = {"bos_token_id": None, "eos_token_id": SPECIAL.index("<|im_end|>")}
_TINY_TEXT: Sizes = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": NUM_TINY_LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
_TINY_TOWER: Sizes = {
    "depth": 3,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 48,
    "out_hidden_size": 64,
}


def _rotary(theta: float, sections: list[int], **more: Any) -> Sizes:
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": sections, **more}


@dataclass(frozen=True)
class RandomQwen:
    """One model; sizes are those of its configuration on the hub."""

    profile: str
    """Packaged profile: prompt, grids and where the RPN branches off."""
    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    text: Sizes
    tower: Sizes
    tiny_text: Sizes
    tiny_tower: Sizes

    def sizes(self, *, is_tiny: bool) -> PreTrainedConfig:
        """Configuration of the stock class."""
        return self.config(
            text_config=_TOKENS | self.text | (_TINY_TEXT | self.tiny_text if is_tiny else {}),
            vision_config=self.tower | (_TINY_TOWER | self.tiny_tower if is_tiny else {}),
            image_token_id=SPECIAL.index("<|image_pad|>"),
            video_token_id=SPECIAL.index("<|video_pad|>"),
            vision_start_token_id=SPECIAL.index("<|vision_start|>"),
            vision_end_token_id=SPECIAL.index("<|vision_end|>"),
            tie_word_embeddings=self.text["tie_word_embeddings"],
        )


QWEN2_5_VL_7B = RandomQwen(
    "qwen2.5-vl-7b",
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    text={
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rope_parameters": _rotary(1e6, [16, 24, 24]),
        "tie_word_embeddings": False,
    },
    tower={
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3420,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    tiny_text={"rope_parameters": _rotary(1e6, [1, 1, 2])},
    tiny_tower={"fullatt_block_indexes": [2]},
)
QWEN3_VL_4B = RandomQwen(
    "qwen3-vl-4b",
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    text={
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rope_parameters": _rotary(5e6, [24, 20, 20], mrope_interleaved=True),
        "tie_word_embeddings": True,
    },
    tower={
        "depth": 24,
        "hidden_size": 1024,
        "num_heads": 16,
        "intermediate_size": 4096,
        "out_hidden_size": 2560,
        "patch_size": 16,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    },
    tiny_text={
        "head_dim": 16,
        "rope_parameters": _rotary(5e6, [4, 2, 2], mrope_interleaved=True),
    },
    tiny_tower={"deepstack_visual_indexes": [0, 1]},
)


def random_qwen(
    which: RandomQwen, *, is_tiny: bool, device: str, dtype: torch.dtype
) -> Qwen2_5VlAdapter:
    """Random weights, whole vocabulary, 576 cells an image, frozen."""
    config = which.sizes(is_tiny=is_tiny)
    model = random_weights(which.model, config, device=device, dtype=dtype)
    # No end token and no image token: every run generates the same number of tokens.
    model.get_output_embeddings().weight.data[: len(SPECIAL)] = 0
    profile = _profile(which, config, is_tiny=is_tiny)
    patch, merge = config.vision_config.patch_size, config.vision_config.spatial_merge_size
    processor = Qwen2VLImageProcessorPil(patch_size=patch, merge_size=merge)
    adapter = FAMILIES[profile.family](model, qwen_tokenizer(), profile, processor)
    assert isinstance(adapter, Qwen2_5VlAdapter)
    return adapter


def _profile(which: RandomQwen, config: PreTrainedConfig, *, is_tiny: bool) -> ModelProfile:
    """The packaged one, with heads and a sink rule even where nobody has calibrated it."""
    packaged = load_profile(which.profile)
    branch = NUM_TINY_LAYERS // 2 if is_tiny else packaged.rpn.branch_layer
    heads = HeadSelection(grounding={branch: (1, 3, 6)}, sink=SinkLayerMean(layer=2))
    text = config.get_text_config(decoder=True)
    return packaged.model_copy(
        update={
            "name": f"random-{packaged.name}",
            "model_id": "random",
            "num_layers": text.num_hidden_layers,
            "num_heads": text.num_attention_heads,
            "heads": {QuestionKind.NATURAL: heads},
            "rpn": packaged.rpn.model_copy(update={"branch_layer": branch}),
            "source": "random weights",
        }
    )
