"""The LLaVA-OneVision adapter against the stock class fed by the stock image processor."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_contracts.configs import EvaluationConfig
from data_contracts.sources import SceneSource
from sdrpn_core.evaluation.harness import Evaluator
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.llava_onevision import LlavaOnevisionAdapter
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.pipeline import ZoomPipeline
from tests.families.onevision import NUM_CELLS, SIDE, tiny_llava_onevision
from tests.stock_generation import check_generates_as_stock
from tests.zoom_checks import encode_crops, random_images, random_pipeline


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> LlavaOnevisionAdapter:
    directory: Path = tmp_path_factory.mktemp("model")
    loaded = load_adapter(tiny_llava_onevision(directory), device="cpu")
    assert isinstance(loaded, LlavaOnevisionAdapter)
    return loaded


@torch.inference_mode()
def test_generates_what_the_stock_model_does_from_the_stock_processor(
    adapter: LlavaOnevisionAdapter,
) -> None:
    """Two images of one prompt, which the stock processor does not cut into tiles."""
    images, question = random_images([(90, 60), (40, 70)]), "what is the red word"
    prompt = adapter.embed_prompt(question, adapter.encode_images(images))
    tile = "<image>" * (NUM_CELLS + 1)
    text = f"<|im_start|>user {tile}{tile}\n{question}<|im_end|><|im_start|>assistant\n"
    pixels = adapter.image_processor([images], return_tensors="pt")
    assert pixels["pixel_values"].shape == (2, 1, 3, SIDE, SIDE)
    check_generates_as_stock(adapter, prompt, text, dict(pixels))


def test_an_image_is_the_same_alone_and_beside_another(adapter: LlavaOnevisionAdapter) -> None:
    """Alone, the stock class would be given tiles of it."""
    images = random_images([(90, 60), (40, 70)])
    assert len(adapter.image_processor(images[:1], return_tensors="pt")["pixel_values"][0]) > 1
    for image, beside in zip(images, adapter.encode_images(images), strict=True):
        (alone,) = adapter.encode_images([image])
        torch.testing.assert_close(alone.tokens, beside.tokens)


@pytest.mark.parametrize("max_tokens", [None, 10])
def test_the_newline_is_behind_the_cells_however_many_there_are(
    adapter: LlavaOnevisionAdapter, max_tokens: int | None
) -> None:
    (crop,) = encode_crops(adapter, random_images([(90, 60)]), max_tokens)
    assert crop.grid.num_cells == (NUM_CELLS if max_tokens is None else 9)
    assert crop.breaks is not None
    assert np.flatnonzero(crop.breaks).tolist() == [crop.grid.num_cells]
    assert torch.equal(crop.tokens[-1], adapter.model.model.image_newline)
    assert crop.break_ids == ()


def test_gradients_reach_the_pixels_of_an_image_with_its_newline(
    adapter: LlavaOnevisionAdapter,
) -> None:
    (image,) = random_images([(90, 60)])
    pixels, features = adapter.encode_with_gradient(image)
    (plain,) = adapter.encode_images([image])
    torch.testing.assert_close(features.tokens.detach(), plain.tokens)
    features.tokens[:-1].square().sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0


def test_a_budget_that_holds_no_cell_is_refused_before_anything_is_asked(
    adapter: LlavaOnevisionAdapter,
) -> None:
    """The newline takes the one token: each evaluation found out at its first crop."""
    zoom = random_pipeline(adapter)
    least = zoom.regions.with_changes(crop_tokens=1)
    with pytest.raises(ModelError, match="crop_tokens is 1: give at least 2"):
        ZoomPipeline(adapter, zoom.rpn, threshold=zoom.threshold, regions=least)
    with pytest.raises(ModelError, match="crop_tokens is 1: give at least 2"):
        zoom.regions = least
    source = SceneSource(name="held-out", num_images=1, seed=0)
    with pytest.raises(ModelError, match="crop_tokens is 1: give at least 2"):
        Evaluator(adapter, EvaluationConfig(source=source, crop_tokens=1))
