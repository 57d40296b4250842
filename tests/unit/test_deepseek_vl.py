"""DeepSeek-VL adapters against the stock classes fed by the stock image processors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_contracts.enums import ZoomDecision
from data_contracts.profiles import ModelProfile
from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.profiles import load_profile
from sdrpn_core.models.square import SquareAdapter
from tests.families.deepseek import (
    HIGH_SIDE,
    LOW_SIDE,
    tiny_deepseek_vl,
    tiny_deepseek_vl_hybrid,
)
from tests.stock_generation import check_generates_as_stock
from tests.zoom_checks import encode_crops, random_pipeline

MAKERS = {"1.3b": tiny_deepseek_vl, "7b": tiny_deepseek_vl_hybrid}


@pytest.fixture(scope="module", params=list(MAKERS))
def adapter(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> SquareAdapter:
    make: Callable[[Path], ModelProfile] = MAKERS[request.param]
    loaded = load_adapter(make(tmp_path_factory.mktemp("model")), device="cpu")
    assert isinstance(loaded, SquareAdapter)
    return loaded


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


@torch.inference_mode()
def test_generates_what_the_stock_model_does_from_the_stock_processor(
    adapter: SquareAdapter,
) -> None:
    """Square images need no padding: both pipelines then put the same pixels before the towers."""
    image = noise(90, 90)
    (features,) = adapter.encode_images([image])
    prompt = adapter.embed_prompt("what is the red word", [features])
    text = "USER: " + "<image> " * 25 + "what is the red word ASSISTANT:"
    pixels = adapter.image_processor([image], return_tensors="pt")
    check_generates_as_stock(adapter, prompt, text, pixels)


def test_padding_is_what_the_stock_processor_pads_with(adapter: SquareAdapter) -> None:
    """A plain grey wide image: the rows of padding differ in nothing but resampling at the seam."""
    image = Image.new("RGB", (80, 40), (200, 30, 90))
    canvas = adapter.letterbox(image.size).paste(image, adapter.fill, (HIGH_SIDE, HIGH_SIDE))
    ours = adapter.image_processor([canvas], return_tensors="pt")["pixel_values"][0]
    stock = adapter.image_processor([image], return_tensors="pt")["pixel_values"][0]
    rows = [0, 1, 2, -3, -2, -1]
    assert torch.allclose(ours[:, rows], stock[:, rows], atol=1e-5)
    middle = slice(15, 25)
    assert torch.allclose(ours[:, middle], stock[:, middle], atol=1e-5)


@pytest.mark.parametrize("size", [(640, 427), (101, 999), (37, 37)])
def test_content_at_the_borders_is_kept_and_boxes_come_back(
    adapter: SquareAdapter, size: tuple[int, int]
) -> None:
    """Blackening a corner of the image changes the very cells that the letterbox maps it to."""
    image = noise(*size)
    letterbox = adapter.letterbox(size)
    width, height = size
    corner = BoxXYXY(width - width / 8, height - height / 8, width, height)
    assert letterbox.to_image(letterbox.to_canvas(corner)) == corner
    marked = image.copy()
    marked.paste((0, 0, 0), corner.to_pixels(size))
    pixels = [
        np.asarray(letterbox.paste(each, adapter.fill, (640, 640)), dtype=int)
        for each in (image, marked)
    ]
    rows, columns = np.nonzero(np.abs(pixels[0] - pixels[1]).sum(axis=2) > 30)
    scale = 640 / max(size)
    reach = 1 + 2 * scale  # of bicubic resampling
    x0, y0, x1, y1 = (side * scale for side in letterbox.to_canvas(corner))
    assert abs(columns.min() - x0) <= reach
    assert abs(rows.min() - y0) <= reach
    assert abs(columns.max() + 1 - x1) <= reach
    assert abs(rows.max() + 1 - y1) <= reach
    before, after = (adapter.encode_images([each])[0].tokens for each in (image, marked))
    assert not torch.allclose(before, after)


@torch.inference_mode()
def test_many_images_are_encoded_as_one_by_one(adapter: SquareAdapter) -> None:
    """More than the hybrid encodes at once, of many sizes."""
    images = [noise(20 + 9 * index, 70 - 8 * index, index) for index in range(6)]
    together = adapter.encode_images(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = adapter.encode_images([image])
        assert found.letterbox == alone.letterbox
        assert torch.allclose(found.tokens, alone.tokens, atol=1e-5)


def test_crops_within_a_budget_of_tokens(adapter: SquareAdapter) -> None:
    crops = [noise(40, 30), noise(10, 25)]
    small = encode_crops(adapter, crops, 10)
    assert [tuple(crop.grid) for crop in small] == [(3, 3), (3, 3)]
    assert [crop.tokens.shape for crop in small] == [(9, 48), (9, 48)]
    whole = encode_crops(adapter, crops)
    for crop, image in zip(whole, adapter.encode_images(crops), strict=True):
        assert torch.equal(crop.tokens, image.tokens)


def test_a_picture_is_fully_seen_only_where_every_tower_saw_all_of_it(
    adapter: SquareAdapter,
) -> None:
    """Up to the SAM tower's side, the hybrid took every picture for fully seen."""
    pipeline = random_pipeline(adapter, max_seen_ratio=1.0)
    images = [noise(LOW_SIDE, LOW_SIDE), noise(LOW_SIDE + 1, 30), noise(HIGH_SIDE, HIGH_SIDE)]
    answers = pipeline.answer(images, ["it"] * 3, max_new_tokens=1)
    is_seen = [answer.decision is ZoomDecision.IMAGE_FULLY_SEEN for answer in answers]
    assert is_seen == [True, False, False]


def test_towers_and_processor_must_agree_on_sizes(tmp_path: Path) -> None:
    profile = tiny_deepseek_vl_hybrid(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    text = file.read_text()
    assert f'"height": {HIGH_SIDE}' in text
    file.write_text(text.replace(f": {HIGH_SIDE}", ": 96"))
    with pytest.raises(ModelError, match=r"makes canvases of 40 and 96 pixels.*take 40 and 64"):
        load_adapter(profile, device="cpu")


@pytest.mark.parametrize(
    ("name", "layers", "heads"), [("deepseek-vl-1.3b", 24, 16), ("deepseek-vl-7b", 30, 32)]
)
def test_packaged_profiles_put_the_prompt_as_the_chat_template_does(
    name: str, layers: int, heads: int
) -> None:
    profile = load_profile(name)
    assert (profile.num_layers, profile.num_heads) == (layers, heads)
    assert profile.prompt == (
        "You are a helpful language and vision assistant. You are able to understand the visual "
        "content that the user provides, and assist the user with a variety of tasks using "
        "natural language.\n\nUser: {images}{question}\n\nAssistant:"
    )
