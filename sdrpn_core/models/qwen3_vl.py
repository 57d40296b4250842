"""Qwen3-VL and Cosmos 3: as Qwen2.5-VL, with deepstack features and normed query and key heads.

The tower gives features of several depths: the last enter as tokens, the others are added at the
image's columns after the first decoder layers. The branch of the RPN must come after those layers.

Of Cosmos 3, transformers loads what reasons, which is a Qwen3-VL, and leaves out what makes videos.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from sdrpn_core.models.qwen2_5_vl import Qwen2_5VlAdapter


class Qwen3VlAdapter(Qwen2_5VlAdapter):
    """Of ``Qwen3VLForConditionalGeneration`` and ``Cosmos3OmniForConditionalGeneration``."""

    # The chat template writes no system message of its own.
    defaults = Qwen2_5VlAdapter.defaults.model_copy(
        update={
            "prompt": ("<|im_start|>user\n{question}{images}<|im_end|>\n<|im_start|>assistant\n")
        }
    )

    @staticmethod
    def count_deepstack_layers(config: PreTrainedConfig) -> int:
        """One decoder layer for every tower layer that is tapped."""
        return len(config.vision_config.deepstack_visual_indexes)

    def _deepstack(self, output: Any) -> Iterable[tuple[Tensor, ...]] | None:
        """One (C, d) tensor per tapped tower layer, for each image."""
        cells = [len(tokens) for tokens in output.pooler_output]
        # Up to transformers 5.17 a level is one tensor of all images' cells, later one per image.
        levels = [
            torch.split(level, cells) if isinstance(level, Tensor) else level
            for level in output.deepstack_features
        ]
        return zip(*levels, strict=True) if levels else None
