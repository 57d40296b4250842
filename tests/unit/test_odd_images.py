"""Odd image files: refused with a reason, or turned upright; every family answers about them."""

import io

import numpy as np
import pytest
from PIL import Image

from sdrpn_core.images import UnreadableImage, decode_image
from sdrpn_core.models.base import ModelAdapter
from tests.odd_images import REFUSED, noise, rotated
from tests.zoom_checks import check_answer, random_pipeline


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_with_a_reason(name: str):
    make, reason = REFUSED[name]
    with pytest.raises(UnreadableImage, match=reason):
        decode_image(make())


def test_an_opened_file_is_turned_upright_too(adapter: ModelAdapter):
    """``Image.open`` leaves the EXIF orientation to its user; boxes are on the upright picture."""
    pipeline = random_pipeline(adapter)
    opened, upright = Image.open(io.BytesIO(rotated())), decode_image(rotated())
    assert opened.size == (90, 40)
    raw, turned = pipeline.answer([opened, upright], ["it", "it"], max_new_tokens=3)
    assert raw.boxes == turned.boxes
    np.testing.assert_array_equal(raw.roi_map, turned.roi_map)
    check_answer(raw, (40, 90))
    assert raw.used_crop


def test_a_box_is_where_the_strongest_cell_of_the_upright_picture_is(adapter: ModelAdapter):
    pipeline = random_pipeline(adapter, max_regions=1)
    image = decode_image(rotated())
    (answer,) = pipeline.answer([image], ["it"], max_new_tokens=3)
    letterbox = adapter.letterbox(image.size)
    visible = np.where(letterbox.content_mask(adapter.grid), answer.roi_map, 0.0)  # type: ignore[attr-defined]
    row, column = np.unravel_index(int(visible.argmax()), visible.shape)
    cell = letterbox.canvas_width / visible.shape[1]
    centre = ((column + 0.5) * cell - letterbox.pad_left, (row + 0.5) * cell - letterbox.pad_top)
    (box,) = answer.boxes
    assert box.x0 <= np.clip(centre[0], 0.5, 39.5) <= box.x1
    assert box.y0 <= np.clip(centre[1], 0.5, 89.5) <= box.y1


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("RGB", (0, 5)), "image 1: 0 x 5 has no pixels"),
        (Image.open(io.BytesIO(REFUSED["truncated"][0]())), "image 1: damaged JPEG"),
    ],
)
def test_a_refusal_says_which_image(adapter: ModelAdapter, image: Image.Image, reason: str):
    fine = Image.fromarray(noise(60, 40))
    with pytest.raises(UnreadableImage, match=reason):
        random_pipeline(adapter).answer([fine, image], ["it", "it"])


def test_a_thin_canvas_is_never_drawn_at_full_size(adapter: ModelAdapter):
    """20000 x 100 pads to 400 million pixels; its strip must still lie where the grid says."""
    image = Image.new("RGB", (20000, 100), "white")
    canvas = adapter.letterbox(image.size).paste(image, (0, 0, 0), (200, 200))
    lit = np.asarray(canvas)[:, :, 0].max(axis=1)
    assert np.flatnonzero(lit > 128).tolist() in ([99], [100])
