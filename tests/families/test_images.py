"""What a family sees of an image: its tokens, its grid, and every pixel in the right cell."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdrpn_core.geometry import BoxXYXY, GridBox, GridShape
from sdrpn_core.models.errors import ModelError
from sdrpn_core.pipeline import ZoomPipeline
from tests.families.conftest import QUESTIONS, SIZES, Loaded
from tests.families.registry import Inputs
from tests.zoom_checks import check_batched_equals_alone, encode_crops, random_pipeline

VIEWS = pytest.mark.parametrize("for_labels", [True, False], ids=["labels", "answers"])
SHOWN_SIZES = [(96, 64), (48, 80), (120, 30)]


@VIEWS
def test_image_token_span_and_grid(
    loaded: Loaded, images: list[Image.Image], crops: list[list[Image.Image]], for_labels: bool
) -> None:
    for question, image, row in zip(QUESTIONS, images, crops, strict=True):
        features = loaded.adapter.encode_images([image, *row], for_labels=for_labels)
        prompt = loaded.adapter.embed_prompt(question, features)
        inputs = loaded.inputs(question, [image, *row], for_labels=for_labels)
        spans = [prompt.image_columns(index) for index in range(1 + len(row))]
        assert torch.cat(spans).tolist() == loaded.is_cell(inputs).nonzero()[:, 0].tolist()
        assert list(prompt.image_grids) == loaded.family.stock_grids(loaded.adapter, inputs)
        assert prompt.embeds.shape[0] == inputs["input_ids"].shape[1]
        cells = [grid.num_cells for grid in prompt.image_grids]
        assert [len(span) for span in spans] == cells
        tokens = [len(loaded.family.image_ids(loaded.adapter, grid)) for grid in prompt.image_grids]
        assert [len(part.tokens) for part in features] == tokens
        assert [loaded.adapter.num_tokens(part.grid) for part in features] == tokens


CROP_SIZES = [(60, 40), (5, 3), (300, 310), (1, 70), (90, 2)]


@pytest.mark.parametrize("budget", [1, 2, 6, 11, 10_000])
def test_crops_keep_within_a_budget_of_tokens(loaded: Loaded, budget: int) -> None:
    """Families of dynamic grids were said to encode crops at one size only."""
    adapter = loaded.adapter
    crops = [
        Image.effect_noise(size, 90).convert("RGB") for size in CROP_SIZES
    ]  # noise, so that no two are alike
    least = adapter.num_tokens(GridShape(1, 1))
    budget = max(budget, least)
    together = encode_crops(adapter, crops, budget)
    sizes = [adapter.num_tokens(crop.grid) for crop in together]
    assert max(sizes) <= budget
    assert all(len(crop.tokens) == size for crop, size in zip(together, sizes, strict=True))
    whole = [adapter.num_tokens(crop.grid) for crop in encode_crops(adapter, crops)]
    assert all(size <= most for size, most in zip(sizes, whole, strict=True))
    for crop, found in zip(crops, together, strict=True):
        (alone,) = encode_crops(adapter, [crop], budget)
        assert alone.grid == found.grid
        torch.testing.assert_close(alone.tokens, found.tokens, atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match=f"at least {least}"):
        encode_crops(adapter, crops, least - 1)


def test_answers_with_crops_of_a_budget(loaded: Loaded, images: list[Image.Image]) -> None:
    full = random_pipeline(loaded.adapter)
    regions = full.regions.with_changes(crop_tokens=4)
    cheap = ZoomPipeline(full.adapter, full.rpn, threshold=full.threshold, regions=regions)
    counts = check_batched_equals_alone(cheap, images, QUESTIONS, max_new_tokens=4)
    assert any(counts), "no question was answered with a crop"


@VIEWS
@pytest.mark.parametrize("size", SHOWN_SIZES, ids=str)
def test_letterbox_maps_image_and_grid_onto_each_other(
    loaded: Loaded,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    for_labels: bool,
) -> None:
    """A painted box lights up exactly the cells that the letterbox names, corners included."""
    blank = Image.new("RGB", size, (0, 0, 0))
    dark, grid = seen_cells(loaded, monkeypatch, blank, for_labels)
    letterbox = loaded.adapter.letterbox(size, for_labels=for_labels)
    white = Image.new("RGB", size, (255, 255, 255))
    full = seen_cells(loaded, monkeypatch, white, for_labels)[0] - dark
    for box in boxes_at_corners_and_centre(size):
        painted = blank.copy()
        painted.paste((255, 255, 255), box.to_pixels(size))
        lit = seen_cells(loaded, monkeypatch, painted, for_labels)[0] - dark
        np.testing.assert_allclose(lit / full.max(), letterbox.coverage(box, grid), atol=0.25)
        assert letterbox.to_image(letterbox.to_canvas(box)) == pytest.approx(box, abs=1e-6)
    whole = letterbox.cells_to_image(GridBox(0, 0, grid.width, grid.height), grid)
    assert whole == pytest.approx(BoxXYXY(0, 0, *size), abs=1e-6)


@VIEWS
@pytest.mark.parametrize("part", ["image", "crop"])
def test_no_content_is_lost_at_the_borders(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, part: str, for_labels: bool
) -> None:
    """A centre crop, the hub processor's default for LLaVA, would cut these borders off."""
    for width, height in SHOWN_SIZES:
        black = Image.new("RGB", (width, height))
        framed = Image.new("RGB", (width, height), (255, 255, 255))
        framed.paste((0, 0, 0), (width // 8, height // 8, width - width // 8, height - height // 8))
        if part == "crop":
            source = Image.new("RGB", (3 * width, 3 * height))
            source.paste(framed, (width, height))
            framed = BoxXYXY(width, height, 2 * width, 2 * height).crop(source)
        dark, grid = seen_cells(loaded, monkeypatch, black, for_labels)
        lit = seen_cells(loaded, monkeypatch, framed, for_labels)[0] - dark > 0.1
        content = loaded.adapter.letterbox(black.size, for_labels=for_labels).content_mask(grid)
        rows, columns = (np.flatnonzero(content.any(axis=axis)) for axis in (1, 0))
        shown = lit[np.ix_(rows, columns)]
        for border in (shown[0], shown[-1], shown[:, 0], shown[:, -1]):
            assert border.all()


def seen_cells(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, image: Image.Image, for_labels: bool
) -> tuple[Any, GridShape]:
    """(h, w) mean pixel of each cell as the vision tower gets it."""
    seen: list[Inputs] = []
    owner, name = loaded.family.encoder(loaded.adapter.model)
    stock = getattr(owner, name)

    def spy(**kwargs: Any) -> Any:
        seen.append(kwargs)
        return stock(**kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, spy)
        (features,) = loaded.adapter.encode_images([image], for_labels=for_labels)
    (inputs,) = seen
    return loaded.family.cell_pixels(inputs, features.grid).numpy(), features.grid


def boxes_at_corners_and_centre(size: tuple[int, int]) -> list[BoxXYXY]:
    """A third of the image in each corner and in the middle."""
    width, height = size[0] / 3, size[1] / 3
    return [
        BoxXYXY(x * width, y * height, (x + 1) * width, (y + 1) * height)
        for x, y in [(0, 0), (2, 0), (0, 2), (2, 2), (1, 1)]
    ]


def test_sizes_make_different_grids_or_one(loaded: Loaded, images: list[Image.Image]) -> None:
    """Labels share one grid; a dynamic answer grid follows the image's shape."""
    profile = loaded.adapter.profile
    labels = {f.grid for f in loaded.adapter.encode_images(images, for_labels=True)}
    answers = {f.grid for f in loaded.adapter.encode_images(images)}
    assert len(labels) == 1
    is_dynamic = profile.images.answers is not None and profile.images.answers.rule == "dynamic"
    assert len(answers) == (len(set(SIZES)) if is_dynamic else 1)
