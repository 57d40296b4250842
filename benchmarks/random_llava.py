"""A random LLaVA with LLaVA-1.5's 24x24 grid: tiny, medium or as large as the 7B."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from benchmarks.random_weights import random_weights
from data_contracts.enums import QuestionKind
from data_contracts.label_settings import RegionSettings
from data_contracts.profiles import HeadSelection, ModelProfile, RpnShape
from data_contracts.sink_rules import SinkLayerMean
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.llava import LlavaAdapter
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.rpn.network import RegionProposalNetwork
from tests.tiny_models import SPECIAL, WORDS, tiny_tokenizer


@dataclass(frozen=True)
class LlavaSize:
    """Widths and depths of the decoder and the vision tower."""

    num_layers: int
    num_heads: int
    hidden_size: int
    intermediate_size: int
    vision_layers: int
    vision_heads: int
    vision_hidden_size: int
    vision_intermediate_size: int
    branch_layer: int


TINY = LlavaSize(6, 8, 64, 96, 2, 2, 32, 48, branch_layer=2)
MEDIUM = LlavaSize(12, 8, 512, 1376, 3, 4, 128, 256, branch_layer=5)
SEVEN_B = LlavaSize(32, 32, 4096, 11008, 24, 16, 1024, 4096, branch_layer=15)
"""LLaVA-1.5-7B, but for its vocabulary."""
NARROW_7B = LlavaSize(32, 8, 512, 1376, 24, 4, 128, 512, branch_layer=15)
"""An eighth as wide: tower, layers, branch and RPN have about the 7B's shares of the work."""
SIZES = {"tiny": TINY, "medium": MEDIUM, "7b-narrow": NARROW_7B, "7b": SEVEN_B}


def random_llava(
    seed: int = 0,
    size: LlavaSize = MEDIUM,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LlavaAdapter:
    """Random weights, 336-pixel input, frozen."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=size.vision_hidden_size,
            intermediate_size=size.vision_intermediate_size,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=size.vision_heads,
            image_size=336,
            patch_size=14,
            projection_dim=size.vision_hidden_size,
        ),
        text_config=LlamaConfig(
            vocab_size=len(SPECIAL) + len(WORDS),
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            max_position_embeddings=4096,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        image_token_id=SPECIAL.index("<image>"),
        vision_feature_layer=-2,
        image_seq_length=576,
    )
    model = random_weights(
        LlavaForConditionalGeneration, config, seed=seed, device=device, dtype=dtype
    )
    # No end token: every run generates the same number of tokens.
    model.lm_head.weight.data[2] = 0
    profile = ModelProfile(
        name="random-llava",
        family="llava",
        model_id="random",
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        prompt="USER: {images} {question} ASSISTANT:",
        heads={
            QuestionKind.NATURAL: HeadSelection(
                grounding={size.branch_layer: (1, 3, 6)}, sink=SinkLayerMean(layer=2)
            )
        },
        rpn=RpnShape(branch_layer=size.branch_layer, depth=3),
        source="random weights",
    )
    return LlavaAdapter(model, tiny_tokenizer(), profile, CLIPImageProcessorPil())


class PlantedRpn(RegionProposalNetwork):
    """Does its work, and then says that each question's region is a slanting band in a box."""

    shown_ratio = 1.0
    """Share of the box's cells that are the region."""

    def score(self, *args: Any, **named: Any) -> Tensor:
        """(N, C) logits: the band lies elsewhere in each row."""
        worked_out = super().score(*args, **named)
        num_rows, num_cells = worked_out.shape
        maps = [_band(row, math.isqrt(num_cells), self.shown_ratio) for row in range(num_rows)]
        return torch.stack(maps).flatten(1).to(worked_out) + 0 * worked_out


def _band(row: int, side: int, shown_ratio: float) -> Tensor:
    """(side, side) logits, the nearest to the corner-to-corner line of a box of a ninth first."""
    box = max(side // 3, 1)
    place = torch.arange(box)
    distance = (place[:, None] - place[None, :]).abs().flatten()
    wanted = distance.argsort(stable=True)[: max(round(shown_ratio * box * box), 1)]
    band = torch.full((box * box,), -4.0)
    band[wanted] = 4.0
    band[[0, -1]] = 4.0  # the corners, so that the box is the box
    logits = torch.full((side, side), -4.0)
    room = side - box - 1  # not at the edge, which would cut the margin off
    y, x = 1 + 5 * row % room, 1 + 7 * row % room
    logits[y : y + box, x : x + box] = band.view(box, box)
    return logits


def random_zoom(adapter: ModelAdapter, shown_ratio: float = 1.0) -> ZoomPipeline:
    """An RPN of the model's own layers; every question gets a crop of about a ninth of the canvas.

    Args:
        adapter: the model.
        shown_ratio: share of its box's cells that each region fills, before the margin.
    """
    rpn = PlantedRpn.from_adapter(adapter, adapter.profile.rpn)
    rpn.shown_ratio = shown_ratio
    regions = RegionSettings(blur_sigma=None, crop_mask_ratio=1.0, margin_cells=0.5)
    return ZoomPipeline(adapter, rpn.set_precision(adapter.dtype), threshold=0.5, regions=regions)


def fast_dtype(device: torch.device) -> torch.dtype:
    """What people run large models in: half precision on a GPU; a CPU has no fast one."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32
