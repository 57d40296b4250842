"""Letterboxes by Pillow, for the oracles of several families."""

from PIL import Image


def padded_to_square(image: Image.Image, fill: tuple[int, ...]) -> Image.Image:
    """The image in the middle of a square of its longer side."""
    square = Image.new("RGB", (max(image.size), max(image.size)), fill)
    square.paste(image, tuple((max(image.size) - side) // 2 for side in image.size))
    return square
