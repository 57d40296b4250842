"""InternVL adapters against the stock class fed by the stock image processor."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data_contracts.profiles import ModelProfile
from sdrpn_core.models.internvl import InternVlAdapter
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.stretched import MAX_ASPECT_RATIO
from tests.families.internvl import (
    SIDE,
    tiny_internvl,
    tiny_internvl_qwen3,
    tiny_internvl_qwen3_moe,
)
from tests.stock_generation import check_generates_as_stock
from tests.zoom_checks import random_images

MAKERS = {
    "3": tiny_internvl,
    "3.5": tiny_internvl_qwen3,
    "3.5 with experts": tiny_internvl_qwen3_moe,
}


@pytest.fixture(scope="module", params=list(MAKERS))
def adapter(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> InternVlAdapter:
    make: Callable[[Path], ModelProfile] = MAKERS[request.param]
    loaded = load_adapter(make(tmp_path_factory.mktemp("model")), device="cpu")
    assert isinstance(loaded, InternVlAdapter)
    return loaded


@torch.inference_mode()
def test_generates_what_the_stock_model_does_from_the_stock_processor(
    adapter: InternVlAdapter,
) -> None:
    """Two wide images, each one tile, between the markers that the stock processor writes."""
    images, question = random_images([(90, 60), (40, 70)]), "what is the red word"
    prompt = adapter.embed_prompt(question, adapter.encode_images(images))
    tile = f"<img>{'<IMG_CONTEXT>' * 25}</img>\n"
    text = f"<|im_start|>user\n{tile}{tile}{question}<|im_end|>\n<|im_start|>assistant\n"
    pixels = adapter.image_processor(images, crop_to_patches=False, return_tensors="pt")
    check_generates_as_stock(adapter, prompt, text, {"pixel_values": pixels["pixel_values"]})


def test_images_fill_the_tile_unless_they_are_longer_than_a_row_of_tiles(
    adapter: InternVlAdapter,
) -> None:
    wide, strip = adapter.letterbox((1200, 100)), adapter.letterbox((2400, 100))
    assert (wide.canvas_width, wide.canvas_height, wide.pad_top) == (1200, 100, 0)
    assert (strip.canvas_width, strip.canvas_height, strip.pad_top) == (2400, 200, 50)
    assert strip.canvas_width / strip.canvas_height == MAX_ASPECT_RATIO
    (features,) = adapter.encode_images(random_images([(300, 20)]))
    assert tuple(features.grid) == (5, 5)
    assert adapter.pixels_seen(features) == (SIDE, SIDE)
