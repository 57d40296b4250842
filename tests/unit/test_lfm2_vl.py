"""The LFM2-VL adapter against the stock class, fed as by its processor, which wants torchvision."""

import copy
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from data_contracts.profiles import ModelProfile
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.loading import load_adapter
from tests.families.lfm import CELL, lfm_images, size_without_tiles, tiny_lfm2_vl
from tests.stock_generation import check_generates_as_stock
from tests.zoom_checks import random_images


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    return tiny_lfm2_vl(tmp_path_factory.mktemp("lfm2_vl"))


@pytest.fixture(scope="module")
def adapter(profile: ModelProfile) -> ModelAdapter:
    return load_adapter(profile, device="cpu")


@torch.inference_mode()
def test_generates_what_the_stock_model_does(adapter: ModelAdapter) -> None:
    """Two images of one prompt, of which the tower pads one to the patches of the other."""
    images, question = random_images([(90, 60), (40, 70)]), "what is the red word"
    prompt = adapter.embed_prompt(question, adapter.encode_images(images))
    inputs = lfm_images(adapter, images, for_labels=False)
    first, second = ("<image>" * (h * w // 4) for h, w in inputs["spatial_shapes"].tolist())
    text = (
        "<|startoftext|><|im_start|>user\n"
        f"<|image_start|>{first}<|image_end|><|image_start|>{second}<|image_end|>"
        f"{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    check_generates_as_stock(adapter, prompt, text, inputs)


def test_an_image_has_the_size_that_the_stock_processor_gives_it(adapter: ModelAdapter) -> None:
    """As it is where its cells are neither too many nor too few, thin ones too."""
    for width in (1, 3, 11, 12, 13, 29, 44, 90, 155, 160, 200):
        for height in (2, 4, 12, 20, 36, 37, 60, 77, 160, 161, 301):
            if max(width, height) > 20 * min(width, height):
                continue  # padded
            (grid,) = adapter.prepare_images([Image.new("RGB", (width, height))]).grids
            found = (grid.width * CELL, grid.height * CELL)
            assert found == size_without_tiles(width, height), (width, height)


def test_short_convolutions_with_biases_are_refused(profile: ModelProfile, tmp_path: Path) -> None:
    """Padding in front of a prompt would be part of its first tokens' states."""
    config = json.loads((Path(profile.model_id) / "config.json").read_text())
    config["text_config"]["conv_bias"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"short convolutions have biases \(conv_bias\)"):
        load_adapter(profile.model_copy(update={"model_id": str(tmp_path)}), device="cpu")


def test_an_image_processor_of_another_model_is_refused(
    profile: ModelProfile, adapter: ModelAdapter
) -> None:
    other = copy.copy(adapter.image_processor)
    other.encoder_patch_size = 16
    with pytest.raises(ModelError, match="cuts patches of 16 pixels merged 2 x 2"):
        type(adapter)(adapter.model, adapter.tokenizer, profile, other)
