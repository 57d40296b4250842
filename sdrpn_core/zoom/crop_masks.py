"""Masked crops: which of a crop's tokens show its region.

A region seldom fills its box: boxes are grown to a least side, so that the vision tower sees what
is around. The decoder gets the tokens on the region and its margin only; they keep the positions
that they have among all. This is the paper's masked upscaling (arXiv 2509.16944), as its authors'
code does it for Qwen, but that tokens at a region's edge are all kept. The vision tower still sees
the whole box; where ``mask_tower`` is set, it sees no more than the decoder.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_contracts.label_settings import RegionSettings
from sdrpn_core.geometry import BoxXYXY, GridShape, Letterbox
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.regions import Region


def masked_crops(
    adapter: ModelAdapter,
    images: Sequence[Image.Image],
    regions: Sequence[Sequence[Region]],
    settings: RegionSettings,
) -> list[list[ImageFeatures]]:
    """Crop regions out of their images, encode them in one pass of the tower, and mask them.

    Args:
        adapter: the model.
        images: upright RGB.
        regions: of each image, any number.
        settings: how many tokens a crop gets, and whether the tower sees the others.

    Returns:
        Crops of each image.
    """
    pairs = [(image, r) for image, row in zip(images, regions, strict=True) for r in row]
    encoded = iter(_encoded(adapter, pairs, settings) if pairs else [])
    return [[next(encoded) for _ in row] for row in regions]


def _encoded(
    adapter: ModelAdapter,
    pairs: Sequence[tuple[Image.Image, Region]],
    settings: RegionSettings,
) -> list[ImageFeatures]:
    crops = [region.box.crop(image) for image, region in pairs]
    prepared = adapter.prepare_crops(crops, settings.crop_tokens)
    shown = [
        shown_cells(letterbox, grid, region, image.size)
        for letterbox, grid, (image, region) in zip(
            prepared.letterboxes, prepared.grids, pairs, strict=True
        )
    ]
    if settings.mask_tower and not all(cells.all() for cells in shown):
        features = adapter.encode_masked(prepared, shown)
    else:
        features = adapter.encode_prepared(prepared)
    return [crop.showing(cells) for crop, cells in zip(features, shown, strict=True)]


def shown_cells(
    letterbox: Letterbox, grid: GridShape, region: Region, image_size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Which tokens of a crop show a part of its region or the margin.

    Args:
        letterbox: of the crop, which is ``region.box``.
        grid: of its tokens.
        region: of the image.
        image_size: (width, height) of the image, in pixels.

    Returns:
        (h, w), at least one cell; all where nothing is masked.
    """
    everything = np.ones(grid, np.bool_)
    if region.shown is None:
        return everything
    left, top, _, _ = region.box.to_pixels(image_size)
    parts = [BoxXYXY(x0 - left, y0 - top, x1 - left, y1 - top) for x0, y0, x1, y1 in region.shown]
    shown = letterbox.touched(parts, grid)
    # Of a picture so thin that it is a sliver of every cell, there is nothing to choose from.
    return shown if shown.any() else everything
