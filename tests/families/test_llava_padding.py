"""LLaVA-1.5 was trained on images padded to a square with the mean colour: nothing is cut off."""

from pathlib import Path

import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.models.llava import LlavaAdapter
from sdrpn_core.models.loading import load_adapter
from tests.tiny_models import tiny_llava

SIZE = (90, 30)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> LlavaAdapter:
    directory: Path = tmp_path_factory.mktemp("tiny_llava")
    adapter = load_adapter(tiny_llava(directory), device="cpu")
    assert isinstance(adapter, LlavaAdapter)
    # What the hub's repository has: the shorter side to the input's size, then a centre crop.
    adapter.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=40)
    return adapter


def marked_at_the_ends() -> Image.Image:
    """A wide black image with a white stripe at its left and right end."""
    image = Image.new("RGB", SIZE)
    for x in (0, SIZE[0] - 15):
        image.paste((255, 255, 255), (x, 0, x + 15, SIZE[1]))
    return image


def seen_pixels(
    adapter: LlavaAdapter, monkeypatch: pytest.MonkeyPatch, image: Image.Image
) -> list[list[float]]:
    seen = []
    stock = adapter.model.get_image_features
    with monkeypatch.context() as patch:
        patch.setattr(
            adapter.model,
            "get_image_features",
            lambda **kwargs: seen.append(kwargs["pixel_values"]) or stock(**kwargs),
        )
        adapter.encode_images([image])
    return seen[0].mean(dim=1)[0].tolist()


@pytest.mark.parametrize("part", ["image", "crop"])
def test_padding_has_the_mean_colour_and_both_ends_are_seen(
    adapter: LlavaAdapter, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    image = marked_at_the_ends()
    if part == "crop":
        source = Image.new("RGB", (200, 200), (9, 9, 9))
        source.paste(image, (60, 80))
        image = BoxXYXY(60, 80, 150, 110).crop(source)
    rows = seen_pixels(adapter, monkeypatch, image)
    # 40 pixels show 90: the image is in rows 13 to 26, the stripes take about 7 columns each.
    for row in (*rows[:12], *rows[28:]):
        assert row == pytest.approx([0.0] * 40, abs=0.02)
    middle = rows[20]
    assert min(*middle[:5], *middle[-5:]) > 1.5
    assert max(middle[10:30]) < -1.0


def test_the_default_of_the_hub_would_lose_both_ends(adapter: LlavaAdapter) -> None:
    """So that the test above is known to be able to fail."""
    (pixels,) = adapter.image_processor(marked_at_the_ends(), return_tensors="pt")["pixel_values"]
    assert pixels.max() < 0
