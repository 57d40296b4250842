"""Letterboxes by Pillow, for the oracles of several families."""

from collections.abc import Sequence

from PIL import Image
from transformers import BaseImageProcessor


def padded_to_square(image: Image.Image, fill: tuple[int, ...]) -> Image.Image:
    """The image in the middle of a square of its longer side."""
    square = Image.new("RGB", (max(image.size), max(image.size)), fill)
    square.paste(image, tuple((max(image.size) - side) // 2 for side in image.size))
    return square


def mean_squares(
    processor: BaseImageProcessor, images: Sequence[Image.Image], side: int
) -> list[Image.Image]:
    """Images in squares of the processor's mean colour, so many pixels a side."""
    mean = tuple(round(255 * value) for value in processor.image_mean)
    return [padded_to_square(image, mean).resize((side, side), Image.BICUBIC) for image in images]
