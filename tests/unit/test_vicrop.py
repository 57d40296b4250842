"""ViCrop's maps against the stock model's own gradients; its tiles; what its code gets wrong."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_contracts.enums import Method
from sdrpn_core.evaluation.vicrop import (
    TILE_HEIGHT,
    Pictures,
    block_mean,
    detail_mask,
    importance_maps,
    tile_boxes,
)
from sdrpn_core.extraction.prompt_attention import (
    attention_gradient,
    pixel_gradient,
    prompt_attention,
)
from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.prompts import ImageFeatures
from tests.tiny_models import tiny_llava
from tests.tiny_qwen import tiny_qwen2_5_vl

QUESTIONS = ["what is the red word ?\nis it small", "what is it ?"]
LAYERS = [2, 4]
VARIANTS = [method for method in Method if method.value.startswith("vicrop")]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> ModelAdapter:
    return load_adapter(tiny_llava(Path(tmp_path_factory.mktemp("llava"))), device="cpu")


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_attention_gradient_is_that_of_the_stock_models_attention_matrix(adapter: ModelAdapter):
    """Two prompts of unequal length and different layers in one batch, against eager autograd."""
    features = adapter.encode_images([noise(60, 40), noise(40, 60)])
    found = attention_gradient(adapter, QUESTIONS, features, LAYERS)
    assert max(map(np.max, found)) > 0
    text = adapter.model.config.text_config
    before = text._attn_implementation
    adapter.model.set_attn_implementation({"text_config": "eager"})
    for question, image, layer, own in zip(QUESTIONS, features, LAYERS, found, strict=True):
        prompt = adapter.embed_prompt(question, [image])
        embeds = prompt.embeds.clone().requires_grad_()
        output = adapter.decoder.text_model(inputs_embeds=embeds[None], output_attentions=True)
        attention = output.attentions[layer]
        logits = adapter.model.get_output_embeddings()(output.last_hidden_state[0, -1]).float()
        logits[adapter.image_token_id] = float("-inf")
        (gradient,) = torch.autograd.grad(logits.log_softmax(-1).max(), attention)
        weighted = (attention * gradient.clamp_min(0))[0, :, -1].mean(dim=0)
        wanted = weighted[prompt.image_columns()].detach().numpy()
        np.testing.assert_allclose(own.ravel(), wanted, rtol=1e-3, atol=1e-9)
    adapter.model.set_attn_implementation({"text_config": before})


def test_pixel_gradient_is_that_of_the_stock_model(adapter: ModelAdapter):
    image = noise(50, 50)
    with torch.inference_mode():  # as the methods are called
        with torch.inference_mode(False):
            pixels, features = adapter.encode_with_gradient(image)
        found = pixel_gradient(adapter, QUESTIONS[1], pixels, features)
    ids = adapter.profile.prompt.replace("{images}", adapter.image_placeholders(1))
    tokens = adapter.tokenizer(ids.replace("{question}", QUESTIONS[1])).input_ids
    expanded = [
        token
        for number in tokens
        for token in [number] * (features.grid.num_cells if number == adapter.image_token_id else 1)
    ]
    own = pixels.detach().clone().requires_grad_()
    logits = adapter.model(input_ids=torch.tensor([expanded]), pixel_values=own).logits[0, -1]
    logits = logits.float()
    logits[adapter.image_token_id] = float("-inf")
    (gradient,) = torch.autograd.grad(logits.log_softmax(-1).max(), own)
    np.testing.assert_allclose(found, gradient[0].norm(dim=0).numpy(), rtol=1e-3, atol=1e-9)
    assert found.max() > 0


def test_gradients_leave_nothing_on_the_model(adapter: ModelAdapter):
    features = adapter.encode_images([noise(60, 40)])
    before = prompt_attention(adapter, QUESTIONS[:1], features, [2])
    attention_gradient(adapter, QUESTIONS[:1], features, [2])
    assert all(parameter.grad is None for parameter in adapter.model.parameters())
    np.testing.assert_array_equal(
        prompt_attention(adapter, QUESTIONS[:1], features, [2])[0], before[0]
    )


@pytest.mark.parametrize("method", VARIANTS)
def test_every_variant_maps_the_whole_image(adapter: ModelAdapter, method: Method):
    images = [noise(90, 30), noise(40, 60)]
    features = adapter.encode_images(images)
    found = importance_maps(adapter, method, Pictures(images, features, QUESTIONS, LAYERS))
    for image, (scores, letterbox) in zip(images, found, strict=True):
        assert letterbox.image_size == image.size
        assert np.isfinite(scores).all()
        assert scores.min() >= 0
        assert scores.max() > scores.min()
    if method.value.endswith("_high"):
        grid = features[0].grid
        assert found[0][0].shape == (grid.height, 3 * grid.width)
        assert found[1][0].shape == grid


def test_pixels_that_the_tower_drops_are_in_no_cell(tmp_path: Path):
    """A canvas of LLaVA-OneVision has 384 pixels, its cells 27 times 14: the map did not fit."""
    adapter = load_adapter(tiny_llava(tmp_path, side=44), device="cpu")
    images = [noise(90, 30), noise(40, 60)]
    features = adapter.encode_images(images)
    assert adapter.pixels_seen(features[0]) == (40, 40)
    shown = Pictures(images, features, QUESTIONS, LAYERS)
    found = importance_maps(adapter, Method.VICROP_PURE_GRAD, shown)
    for (scores, letterbox), image in zip(found, features, strict=True):
        assert scores.shape == image.grid == (5, 5)
        assert scores.max() > 0
        assert (scores[~letterbox.content_mask(image.grid)] == 0).all()


@pytest.mark.parametrize(
    ("high", "plain"),
    [(Method.VICROP_HIGH, Method.VICROP), (Method.VICROP_GRAD_HIGH, Method.VICROP_GRAD)],
)
def test_a_tiles_map_is_that_of_the_tile_alone(
    adapter: ModelAdapter, monkeypatch: pytest.MonkeyPatch, high: Method, plain: Method
):
    """All tiles went through the model at once, gradients too, whatever the batch size was."""
    image = noise(180, 30)
    side = adapter.input_side
    features = adapter.encode_images([image])
    sizes, encode = [], adapter.encode_images

    def watched(images: Sequence[Image.Image]) -> list[ImageFeatures]:
        sizes.append(len(images))
        return encode(images)

    monkeypatch.setattr(adapter, "encode_images", watched)
    [(joined, _)] = importance_maps(adapter, high, Pictures([image], features, QUESTIONS[:1], [2]))
    assert sizes == [4, 2]
    for number in (1, 4):
        tile = image.crop((30 * number, 0, 30 * number + 30, 30)).resize((side, side))
        shown = Pictures([tile], encode([tile]), QUESTIONS[:1], [2])
        [(alone, _)] = importance_maps(adapter, plain, shown)
        width = alone.shape[1]
        found = joined[:, number * width : (number + 1) * width]
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-8)


def test_families_without_plain_pixels_say_which_methods_to_leave_out(tmp_path: Path):
    qwen = load_adapter(tiny_qwen2_5_vl(tmp_path), device="cpu")
    image = noise(60, 40)
    shown = Pictures([image], qwen.encode_images([image]), QUESTIONS[:1], [2])
    for method in (Method.VICROP_GRAD, Method.VICROP_HIGH):
        [(scores, _)] = importance_maps(qwen, method, shown)
        assert scores.max() > 0
    with pytest.raises(ModelError, match=r"^vicrop_pure_grad and .*: leave these methods out"):
        importance_maps(qwen, Method.VICROP_PURE_GRAD, shown)


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_tiles_are_the_image_and_none_is_empty(width: int, height: int):
    """Its code makes no column at all of an image that is taller than wide."""
    rows = tile_boxes((width, height))
    assert all(x0 < x1 and y0 < y1 for row in rows for x0, y0, x1, y1 in row)
    assert sum((x1 - x0) * (y1 - y0) for row in rows for x0, y0, x1, y1 in row) == width * height
    assert len(rows) == -(-height // TILE_HEIGHT)
    assert len({len(row) for row in rows}) == 1


def test_detail_is_where_edges_are_and_never_in_padding():
    pixels = np.zeros((3, 60, 60))
    pixels[:, 20:40, 20:40] = np.random.default_rng(0).random((3, 20, 20))
    content = Letterbox.square((60, 40)).content_mask(GridShape(60, 60))
    mask = detail_mask(pixels, content)
    assert mask[22:38, 22:38].all()
    assert not mask[~content].any()
    assert not mask[10:15, 5:15].any()


def test_block_mean_keeps_places():
    values = np.zeros((6, 4))
    values[2:4, 2:4] = 8.0
    assert block_mean(values, GridShape(3, 2)).tolist() == [[0, 0], [0, 8], [0, 0]]
