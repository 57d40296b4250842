"""Pictures of one example: drawn, shrunk, and put into the page as data URIs."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from data_contracts.enums import RoiLabel
from sdrpn_core.regions import Region
from sdrpn_core.report.data import Example
from sdrpn_core.report.overlay import (
    CROP_COLOUR,
    TRUE_BOX_COLOUR,
    draw_boxes,
    draw_heat_map,
    draw_labels,
    fade_hidden,
    relative_to_peak,
    shrink,
)

MAX_SIDE = 400
"""Longer side of a picture in the page, in pixels."""


@dataclass(frozen=True)
class Picture:
    """One picture of the page."""

    caption: str
    alt: str
    source: str
    """Data URI."""
    width: int
    height: int


def pictures_of(example: Example) -> list[Picture]:
    """Everything that can be drawn of an example, in reading order."""
    return list(_pictures(example))


def _pictures(example: Example) -> Iterator[Picture]:
    picture = shrink(example.image, MAX_SIDE)
    size, letterbox = example.letterbox.image_size, example.letterbox
    boxes = [region.box for region in example.regions]
    with_box = picture
    if example.true_box is not None:
        with_box = draw_boxes(picture, [example.true_box], size, TRUE_BOX_COLOUR)
    yield _whole_picture(example, with_box)
    if example.attention is not None:
        heat = draw_heat_map(picture, relative_to_peak(example.attention, letterbox), letterbox)
        heat = _outline_true_box(example, heat)
        yield _picture("Response attention", "Heat map of the response's raw attention", heat)
    if example.labels is not None:
        labels = _outline_true_box(example, draw_labels(picture, example.labels, letterbox))
        counts = {
            name: int((example.labels == value).sum()) for name, value in _LABEL_NAMES.items()
        }
        words = ", ".join(f"{count} cells {name}" for name, count in counts.items())
        yield _picture("Pseudo-label", f"Pseudo-label over the picture: {words}", labels)
    if example.roi_map is not None:
        roi = draw_heat_map(picture, example.roi_map, letterbox)
        roi = draw_boxes(_outline_true_box(example, roi), boxes, size, CROP_COLOUR)
        peak = float(example.roi_map.max())
        yield _picture(
            f"RoI map (peak {peak:.2f})", "Heat map of the RPN's region probabilities", roi
        )
    for region in example.regions:
        yield _crop_picture(example, region)


_LABEL_NAMES = {
    "foreground": RoiLabel.FOREGROUND,
    "background": RoiLabel.BACKGROUND,
    "ignored": RoiLabel.IGNORE,
}


def _outline_true_box(example: Example, picture: Image.Image) -> Image.Image:
    if example.true_box is None:
        return picture
    return draw_boxes(
        picture, [example.true_box], example.letterbox.image_size, TRUE_BOX_COLOUR, dashed=True
    )


def _whole_picture(example: Example, picture: Image.Image) -> Picture:
    boxes = [region.box for region in example.regions]
    drawn = draw_boxes(picture, boxes, example.letterbox.image_size, CROP_COLOUR, dashed=True)
    shown = []
    if example.true_box is not None:
        shown.append("the true box (green)")
    if boxes:
        shown.append("the crop (pink, dashed)")
    words = "The picture" + (" with " + " and ".join(shown) if shown else "")
    return _picture("Picture", words, drawn)


def _crop_picture(example: Example, region: Region) -> Picture:
    # The image may be a smaller copy of the source.
    scale = example.image.width / example.letterbox.image_width
    crop = region.box.scaled(scale, scale).crop(
        fade_hidden(example.image, [region], example.letterbox.image_size)
    )
    factor = MAX_SIDE / 2 / max(crop.size)
    if factor > 1:
        enlarged = (max(round(crop.width * factor), 1), max(round(crop.height * factor), 1))
        crop = crop.resize(enlarged, Image.Resampling.BICUBIC)
    caption, words = "Crop", "The region that the model zoomed into"
    if region.shown is not None:
        caption, words = "Crop, pale outside the region", f"{words}, pale outside the region"
    return _picture(caption, words, shrink(crop, MAX_SIDE))


def _picture(caption: str, alt: str, image: Image.Image) -> Picture:
    buffer = io.BytesIO()
    # Without chroma subsampling: thin coloured outlines would smear. Without `optimize`: Pillow has
    # a byte a pixel for it, and grain takes more.
    image.save(buffer, format="JPEG", quality=80, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Picture(caption, alt, f"data:image/jpeg;base64,{data}", image.width, image.height)
