"""Masked crops: which of a crop's tokens show its region.

A region seldom fills its box: boxes are grown to a least side, so that the vision tower sees what
is around. The decoder gets the tokens on the region and its margin only; they keep the positions
that they have among all. This is the paper's masked upscaling (arXiv 2509.16944), as its authors'
code does it for Qwen, but that tokens at a region's edge are all kept.
"""

from collections.abc import Sequence

from PIL import Image

from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.regions import Region


def masked_crops(
    adapter: ModelAdapter,
    images: Sequence[Image.Image],
    regions: Sequence[Sequence[Region]],
    max_tokens: int | None = None,
) -> list[list[ImageFeatures]]:
    """Crop regions out of their images, encode them in one pass of the tower, and mask them.

    Args:
        adapter: the model.
        images: upright RGB.
        regions: of each image, any number.
        max_tokens: per crop; None for as many as an image gets.

    Returns:
        Crops of each image.
    """
    crops = [r.box.crop(image) for image, row in zip(images, regions, strict=True) for r in row]
    encoded = iter(adapter.encode_crops(crops, max_tokens) if crops else [])
    return [
        [masked_crop(next(encoded), region, image.size) for region in row]
        for image, row in zip(images, regions, strict=True)
    ]


def masked_crop(crop: ImageFeatures, region: Region, image_size: tuple[int, int]) -> ImageFeatures:
    """The crop with only the tokens shown that show a part of its region or the margin.

    Args:
        crop: of ``region.box``.
        region: of the image.
        image_size: (width, height) of the image, in pixels.
    """
    if region.shown is None:
        return crop
    left, top, _, _ = region.box.to_pixels(image_size)
    parts = [BoxXYXY(x0 - left, y0 - top, x1 - left, y1 - top) for x0, y0, x1, y1 in region.shown]
    shown = crop.letterbox.touched(parts, crop.grid)
    # Of a picture so thin that it is a sliver of every cell, there is nothing to choose from.
    return crop.showing(shown) if shown.any() else crop
