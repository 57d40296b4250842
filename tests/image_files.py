"""Pictures, and the bytes of their files."""

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image


def noise(sizes: Iterable[tuple[int, int]]) -> list[Image.Image]:
    """Pictures of these (width, height) that are alike in no pixel."""
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        for width, height in sizes
    ]


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """The file that Pillow writes of a picture in a format, with the format's options."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
