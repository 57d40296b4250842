"""ViCrop's ways of saying how much each part of an image matters to a question.

Three maps, each of the whole image or of its tiles (high-res):

* relative attention: the question's attention over that of a general description prompt;
* attention gradient: attention times the positive part of its gradient;
* pixel gradient: the question's over the general prompt's, where the image has detail.

Differences from the authors' code (``mllms_know``), beside those of ``baselines.py``: ratios have a
floor; an image always has at least one column of tiles (theirs divides by 0 on tall images); tiles
are stretched to the model's square, so that their maps join without seams or padding; padding does
not enter the median that tells detail from plain areas.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from data_contracts.enums import Method, QuestionKind
from data_contracts.profiles import ModelProfile
from sdrpn_core.evaluation.baselines import relative_attention
from sdrpn_core.extraction.prompt_attention import (
    attention_gradient,
    pixel_gradient,
    prompt_attention,
)
from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures

GENERAL_PROMPT = "Write a general description of the image."
"""ViCrop's question about nothing in particular."""

TILE_HEIGHT = 1024
"""Greatest height of a row of tiles, in pixels of the image."""

_TILES_AT_ONCE = 4
"""Gradients keep what all layers make of each tile, and an image of 8K has forty."""
_BLUR_SIGMA = 0.8
"""Sigma of the 3 x 3 blur that is taken off an image to find its detail."""
_MEDIAN_SIDE = 7

FloatMap = NDArray[np.floating]


@dataclass(frozen=True)
class Pictures:
    """Images as they are looked at, one question each."""

    images: Sequence[Image.Image]
    """Upright RGB."""
    features: Sequence[ImageFeatures]
    questions: Sequence[str]
    layers: Sequence[int]
    """Layer whose attention is read."""


def importance_maps(
    adapter: ModelAdapter, method: Method, shown: Pictures
) -> list[tuple[FloatMap, Letterbox]]:
    """One map per image, not negative, and how it lies over the image; ``method`` is ViCrop's.

    Raises:
        ModelError: if the family gives no gradients of pixels and the method needs them.
    """
    make, is_of_tiles = _VARIANTS[method]
    if not is_of_tiles:
        maps = make(adapter, shown)
        return [(found, seen.letterbox) for found, seen in zip(maps, shown.features, strict=True)]
    return [
        (_map_of_tiles(adapter, make, image, question, layer), Letterbox.identity(image.size))
        for image, question, layer in zip(shown.images, shown.questions, shown.layers, strict=True)
    ]


def most_grounding_layer(profile: ModelProfile, kind: QuestionKind) -> int:
    """The layer that ViCrop reads: the one with most grounding heads, the earlier on a tie.

    Raises:
        UncalibratedProfile: if the profile has no heads for questions of this kind.
    """
    grounding = profile.heads_for(kind).grounding
    return min(grounding, key=lambda layer: (-len(grounding[layer]), layer))


def general_question(question: str) -> str:
    """ViCrop's general prompt in the question's wrapper: what follows its first line stays."""
    _, newline, suffix = question.partition("\n")
    return GENERAL_PROMPT + newline + suffix


def tile_boxes(image_size: tuple[int, int]) -> list[list[tuple[int, int, int, int]]]:
    """Pixel boxes of the tiles of a (width, height) image, row by row; together the image."""
    width, height = image_size
    num_rows = math.ceil(height / TILE_HEIGHT)
    num_columns = min(max(num_rows * width // height, 1), width)
    xs = [column * width // num_columns for column in range(num_columns + 1)]
    ys = [row * height // num_rows for row in range(num_rows + 1)]
    return [
        [(xs[c], ys[r], xs[c + 1], ys[r + 1]) for c in range(num_columns)] for r in range(num_rows)
    ]


def detail_mask(pixels: NDArray[np.floating], content: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where an image differs from its blurred self more than it does at half of its pixels.

    Args:
        pixels: (3, H, W).
        content: (H, W) pixels of the image; the others are padding, and have no detail.
    """
    blurred = np.stack([ndimage.gaussian_filter(c, _BLUR_SIGMA, radius=1) for c in pixels])
    difference = np.linalg.norm(pixels - blurred, axis=0)
    detail = ndimage.median_filter(difference, size=_MEDIAN_SIDE)
    mask: NDArray[np.bool_] = content & (detail > np.median(detail[content]))
    return mask


def block_mean(values: FloatMap, grid: GridShape) -> FloatMap:
    """(H, W) -> (h, w), the mean of each cell's pixels; H and W are multiples of h and w."""
    height, width = values.shape
    cells = values.reshape(grid.height, height // grid.height, grid.width, width // grid.width)
    means: FloatMap = cells.mean(axis=(1, 3))
    return means


def _relative(adapter: ModelAdapter, shown: Pictures) -> list[FloatMap]:
    asked = prompt_attention(adapter, shown.questions, shown.features, shown.layers)
    general = [general_question(question) for question in shown.questions]
    described = prompt_attention(adapter, general, shown.features, shown.layers)
    return [relative_attention(q, g) for q, g in zip(asked, described, strict=True)]


def _gradient(adapter: ModelAdapter, shown: Pictures) -> list[FloatMap]:
    return list(attention_gradient(adapter, shown.questions, shown.features, shown.layers))


def _pure_gradient(adapter: ModelAdapter, shown: Pictures) -> list[FloatMap]:
    """One image at a time: gradients through the whole model take its memory many times over."""
    return [
        _pixel_map(adapter, image, question)
        for image, question in zip(shown.images, shown.questions, strict=True)
    ]


@torch.inference_mode(False)
@torch.enable_grad()
def _pixel_map(adapter: ModelAdapter, image: Image.Image, question: str) -> FloatMap:
    pixels, features = adapter.encode_with_gradient(image)
    asked = pixel_gradient(adapter, question, pixels, features)
    described = pixel_gradient(adapter, general_question(question), pixels, features)
    # Some towers drop a rest of the canvas that makes no whole patch: no cell shows it.
    width, height = adapter.pixels_seen(features)
    shown = np.s_[..., :height, :width]
    content = features.letterbox.content_mask(GridShape(height, width))
    mask = detail_mask(pixels.detach()[0].float().cpu().numpy()[shown], content)
    return block_mean(relative_attention(asked[shown], described[shown]) * mask, features.grid)


def _map_of_tiles(
    adapter: ModelAdapter,
    make: Callable[[ModelAdapter, Pictures], list[FloatMap]],
    image: Image.Image,
    question: str,
    layer: int,
) -> FloatMap:
    """Every tile seen on its own, the maps joined."""
    boxes = tile_boxes(image.size)
    side = adapter.input_side
    tiles = [image.crop(box).resize((side, side)) for row in boxes for box in row]
    found: list[FloatMap] = []
    for start in range(0, len(tiles), _TILES_AT_ONCE):
        few = tiles[start : start + _TILES_AT_ONCE]
        count = len(few)
        shown = Pictures(few, adapter.encode_images(few), [question] * count, [layer] * count)
        found += make(adapter, shown)
    maps = iter(found)
    joined: FloatMap = np.block([[next(maps) for _ in row] for row in boxes])
    return joined


_VARIANTS: Mapping[Method, tuple[Callable[[ModelAdapter, Pictures], list[FloatMap]], bool]] = {
    Method.VICROP: (_relative, False),
    Method.VICROP_GRAD: (_gradient, False),
    Method.VICROP_PURE_GRAD: (_pure_gradient, False),
    Method.VICROP_HIGH: (_relative, True),
    Method.VICROP_GRAD_HIGH: (_gradient, True),
    Method.VICROP_PURE_GRAD_HIGH: (_pure_gradient, True),
}
