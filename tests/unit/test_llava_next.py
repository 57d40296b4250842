"""The LLaVA-NeXT adapter against the stock class that gets every tile of the stock processor."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, SiglipVisionConfig

from sdrpn_core.models.llava_next import LlavaNextAdapter
from sdrpn_core.models.loading import load_adapter
from tests.families.llavanext import SIDE, TILES, tiny_llava_next
from tests.tiny_models import tiny_clip
from tests.zoom_checks import random_images

NUM_CELLS = 25
TOWER = tiny_clip(SIDE)


def _siglip() -> dict[str, Any]:
    """As Granite Vision: no class token, and features of several layers side by side."""
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    kept += ("image_size", "patch_size")
    return {
        "vision_config": SiglipVisionConfig(**{name: getattr(TOWER, name) for name in kept}),
        "vision_feature_layer": [-2, -1],
        "vision_feature_select_strategy": "full",
    }


def _clip(layer: int | list[int]) -> dict[str, Any]:
    return {"vision_config": CLIPVisionConfig(**TOWER.to_dict()), "vision_feature_layer": layer}


@pytest.mark.parametrize(
    "changes", [_clip(-2), _clip([-2, -1]), _siglip()], ids=["one layer", "two", "no class token"]
)
@torch.inference_mode()
def test_an_image_is_the_first_tile_of_the_stock_model(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """Which shows the whole of it, and to which no other tile adds anything."""
    profile = tiny_llava_next(tmp_path, image_grid_pinpoints=TILES, **changes)
    adapter = load_adapter(profile, device="cpu")
    assert isinstance(adapter, LlavaNextAdapter)
    images = random_images([(90, 60), (40, 70)])
    inputs = adapter.image_processor(images, return_tensors="pt")
    assert inputs["pixel_values"].shape[1] > 1
    stock = adapter.model.get_image_features(**inputs, return_dict=True).pooler_output
    for ours, theirs in zip(adapter.encode_images(images), stock, strict=True):
        assert len(theirs) > NUM_CELLS + 1
        torch.testing.assert_close(ours.tokens[:-1], theirs[:NUM_CELLS], atol=1e-5, rtol=1e-5)
        assert torch.equal(ours.tokens[-1], theirs[-1])  # the newline behind the last row of tiles
