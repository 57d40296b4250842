"""Masked crops: which of a crop's tokens show its region.

A region seldom fills its box: boxes are grown to a least side, so that the vision tower sees what
is around. The decoder gets the tokens on the region and its margin only; they keep the positions
that they have among all. This is the paper's masked upscaling (arXiv 2509.16944).
"""

import numpy as np
from numpy.typing import NDArray

from sdrpn_core.geometry import FloatArray
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.regions import Region


def masked_crop(crop: ImageFeatures, region: Region, image: ImageFeatures) -> ImageFeatures:
    """The crop with only the tokens on its region shown.

    Those are the tokens whose middle is in a cell of the mask, or beside one within the margin,
    and not in padding. A crop too coarse to have such a token is shown whole, but for padding.

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
    height, width = region.mask.shape
    along_y = _is_within(rows - region.cells.y0, height, region.margin_cells)
    along_x = _is_within(columns - region.cells.x0, width, region.margin_cells)
    content = crop.letterbox.content_mask(crop.grid)
    shown = (along_y @ region.mask @ along_x.T) & content
    return crop.showing(shown if shown.any() else content)


def _is_within(places: FloatArray, num_cells: int, margin: float) -> NDArray[np.bool_]:
    """(places, cells) whether a place is in a cell or beside it within a margin.

    Args:
        places: distances from the first cell's edge, in cells.
        num_cells: in the row.
        margin: in cells.
    """
    middles = np.arange(num_cells) + 0.5
    within: NDArray[np.bool_] = np.abs(places[:, None] - middles) <= 0.5 + margin + 1e-9
    return within
