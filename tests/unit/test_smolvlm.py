"""SmolVLM adapters against the stock classes fed by the stock processor."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, Idefics3Processor

from data_contracts.profiles import ModelProfile
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.smolvlm import SmolVlmAdapter
from tests.families.smolvlm import SIDE, tiny_idefics3, tiny_smolvlm
from tests.stock_generation import check_generates_as_stock
from tests.zoom_checks import random_images

MAKERS = {"SmolVLM": tiny_idefics3, "SmolVLM2": tiny_smolvlm}


@pytest.fixture(scope="module", params=list(MAKERS))
def adapter(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> SmolVlmAdapter:
    make: Callable[[Path], ModelProfile] = MAKERS[request.param]
    loaded = load_adapter(make(tmp_path_factory.mktemp("model")), device="cpu")
    assert isinstance(loaded, SmolVlmAdapter)
    return loaded


@torch.inference_mode()
def test_generates_what_the_stock_model_does_from_the_stock_processor(
    adapter: SmolVlmAdapter,
) -> None:
    """Two images, each one tile, between the markers that the stock processor writes."""
    images, question = random_images([(90, 60), (40, 70)]), "what is the red word"
    prompt = adapter.embed_prompt(question, adapter.encode_images(images))
    processor = Idefics3Processor(adapter.image_processor, adapter.tokenizer, image_seq_len=25)
    inputs = processor(
        text=f"USER: <image><image> {question} ASSISTANT:",
        images=images,
        do_resize=False,
        do_image_splitting=False,
        return_tensors="pt",
    )
    text = adapter.tokenizer.decode(inputs.input_ids[0])
    assert text.count("<global-img>") == 2
    check_generates_as_stock(adapter, prompt, text, {"pixel_values": inputs["pixel_values"]})


def test_a_tile_that_is_not_the_tower_s_is_refused(tmp_path: Path) -> None:
    """Idefics3-8B sees tiles of 364 pixels with a tower for 980: its grid would be another."""
    profile = tiny_idefics3(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    processor.max_image_size = {"longest_edge": 36}
    processor.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"tiles of 36 pixels, its vision tower .* {SIDE}: use"):
        load_adapter(profile, device="cpu")
