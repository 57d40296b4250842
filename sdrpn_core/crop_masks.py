"""Masked crops: which of a crop's tokens show its region.

A region seldom fills its box: boxes are grown to a least side, so that the vision tower sees what
is around. The decoder gets the tokens on the region and its margin only; they keep the positions
that they have among all. This is the paper's masked upscaling (arXiv 2509.16944), as its authors'
code does it for Qwen, but that tokens at a region's edge are all kept.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdrpn_core.geometry import FloatArray
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.regions import Region


def masked_crops(
    adapter: ModelAdapter,
    images: Sequence[Image.Image],
    features: Sequence[ImageFeatures],
    regions: Sequence[Sequence[Region]],
    max_tokens: int | None = None,
) -> list[list[ImageFeatures]]:
    """Crop regions out of their images, encode them in one pass of the tower, and mask them.

    Args:
        adapter: the model.
        images: upright RGB.
        features: of each image.
        regions: of each image, any number.
        max_tokens: per crop; None for as many as an image gets.

    Returns:
        Crops of each image.
    """
    crops = [r.box.crop(image) for image, row in zip(images, regions, strict=True) for r in row]
    encoded = iter(adapter.encode_crops(crops, max_tokens) if crops else [])
    return [
        [masked_crop(next(encoded), region, image) for region in row]
        for image, row in zip(features, regions, strict=True)
    ]


def masked_crop(crop: ImageFeatures, region: Region, image: ImageFeatures) -> ImageFeatures:
    """The crop with only the tokens on its region shown.

    Those are the tokens that touch a cell of the mask or its margin, and not padding alone.

    Args:
        crop: of ``region.box``.
        region: found on the RoI map of ``image``.
        image: what the crop was cut from.
    """
    if region.mask is None:
        return crop
    left, top, _, _ = region.box.to_pixels(image.letterbox.image_size)
    x, y = crop.letterbox.cell_centers(crop.grid)
    columns, rows = image.letterbox.to_cells(x + left, y + top, image.grid)
    width, height = _token_size(crop, image)
    along_y = _touches(rows - region.cells.y0, height, region.mask.shape[0], region.margin_cells)
    along_x = _touches(columns - region.cells.x0, width, region.mask.shape[1], region.margin_cells)
    shown = (along_y @ region.mask @ along_x.T) & crop.letterbox.content_mask(crop.grid)
    # Of a picture so thin that it is a sliver of every cell, there is nothing to choose from.
    return crop.showing(shown) if shown.any() else crop


def _token_size(crop: ImageFeatures, image: ImageFeatures) -> tuple[float, float]:
    """(width, height) of a crop's cells, in cells of the image."""
    width, height = crop.letterbox.cell_size(crop.grid)
    cell_width, cell_height = image.letterbox.cell_size(image.grid)
    return width / cell_width, height / cell_height


def _touches(middles: FloatArray, size: float, num_cells: int, margin: float) -> NDArray[np.bool_]:
    """(tokens, cells) whether a token has a part in a cell or its margin.

    Args:
        middles: of the tokens, as distances from the first cell's edge, in cells.
        size: of a token, in cells.
        num_cells: in the row.
        margin: in cells.
    """
    distance = np.abs(middles[:, None] - (np.arange(num_cells) + 0.5))
    touches: NDArray[np.bool_] = distance < 0.5 + margin + size / 2 - 1e-6
    return touches
