"""A random LLaVA with LLaVA-1.5's 24x24 grid: tiny, medium or as large as the 7B."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from benchmarks.random_weights import random_weights
from data_contracts.enums import QuestionKind, ZoomDecision
from data_contracts.label_settings import RegionSettings
from data_contracts.profiles import HeadSelection, ModelProfile, RpnShape
from data_contracts.sink_rules import SinkLayerMean
from sdrpn_core.geometry import GridBox
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.llava import LlavaAdapter
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.regions import Region
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.zoom.gate import Zoom
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
    size: LlavaSize = MEDIUM, device: str = "cpu", dtype: torch.dtype = torch.float32
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
    model = random_weights(LlavaForConditionalGeneration, config, device=device, dtype=dtype)
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


class PlantedZoom(ZoomPipeline):
    """Proposes, and then zooms into a region of known size: random maps are no measure."""

    shown_ratio = 0.4
    """Share of its box's cells that a region fills, on average, before the margin."""

    def zoom(
        self,
        roi_map: NDArray[np.float32],
        image: ImageFeatures,
        threshold: float,
        regions: RegionSettings,
    ) -> Zoom:
        """A slanting band in a box of a third of the grid's sides, near the map's peak.

        Regions fill half as much of it, as much or half as much again as the average, by turns of
        the peak's place, so that crops of a batch differ in length.
        """
        content = np.argwhere(image.letterbox.content_mask(image.grid))
        first, last = content.min(axis=0), content.max(axis=0) + 1
        height, width = np.clip(np.array(image.grid) // 3, 1, last - first)
        peak = np.array(np.unravel_index(int(roi_map.argmax()), roi_map.shape))
        y, x = np.clip(peak - (height // 2, width // 2), first, last - (height, width))
        cells = GridBox(int(x), int(y), int(x + width), int(y + height))
        share = self.shown_ratio * (0.5, 1.0, 1.5)[int(peak.sum()) % 3]
        is_masked = regions.mask_threshold_ratio is not None
        region = Region.of_cells(
            cells,
            _band(int(height), int(width), share) if is_masked else None,
            image.letterbox,
            image.grid,
            regions.margin_cells,
        )
        return Zoom((region,), ZoomDecision.ZOOMED)


def _band(height: int, width: int, share: float) -> NDArray[np.bool_]:
    """(height, width) with the cells nearest to a corner-to-corner line, so many of them."""
    y, x = (np.arange(side) + 0.5 for side in (height, width))
    distance = np.abs(y[:, None] / height - x[None, :] / width).ravel()
    band = np.zeros(height * width, np.bool_)
    band[distance.argsort(kind="stable")[: max(round(min(share, 1.0) * band.size), 1)]] = True
    return band.reshape(height, width)


def random_zoom(adapter: ModelAdapter, shown_ratio: float = 0.4) -> PlantedZoom:
    """An RPN of the model's own layers, and one crop for every question; see ``PlantedZoom``."""
    rpn = RegionProposalNetwork.from_adapter(adapter, adapter.profile.rpn)
    planted = PlantedZoom(
        adapter,
        rpn.set_precision(adapter.dtype),
        threshold=0.5,
        regions=RegionSettings.preset("default"),
    )
    planted.shown_ratio = shown_ratio
    return planted


def fast_dtype(device: torch.device) -> torch.dtype:
    """What people run large models in: half precision on a GPU; a CPU has no fast one."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32
