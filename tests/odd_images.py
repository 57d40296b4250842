"""Odd image files, made here: each is answered about, or refused with a reason."""

import numpy as np
from PIL import Image

from tests.image_files import encoded


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(width)
    return rng.integers(0, 255, (height, width, channels), dtype=np.uint8).squeeze()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(noise(90, 40)), "JPEG", exif=exif)


def deep() -> bytes:
    values = np.random.default_rng(0).integers(0, 2**16, (40, 60), dtype=np.uint16)
    return encoded(Image.fromarray(values), "PNG")


def palette() -> bytes:
    image = Image.fromarray(noise(60, 40)).quantize(16)
    return encoded(image, "PNG", transparency=3)


def animated() -> bytes:
    frames = [Image.fromarray(noise(50 + i, 40)).resize((50, 40)) for i in range(3)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


ANSWERED = {
    "one pixel": (lambda: encoded(Image.new("RGB", (1, 1), "red"), "PNG"), (1, 1)),
    "very wide": (lambda: encoded(Image.fromarray(noise(20000, 100)), "PNG"), (20000, 100)),
    "very tall": (lambda: encoded(Image.fromarray(noise(3, 9000)), "PNG"), (3, 9000)),
    "CMYK": (lambda: encoded(Image.fromarray(noise(60, 40)).convert("CMYK"), "JPEG"), (60, 40)),
    "16 bit": (deep, (60, 40)),
    "palette with transparency": (palette, (60, 40)),
    "grey with alpha": (
        lambda: encoded(Image.fromarray(noise(60, 40, 2), "LA"), "PNG"),
        (60, 40),
    ),
    "rotated by EXIF": (rotated, (40, 90)),
    "animated": (animated, (50, 40)),
}
REFUSED = {
    "empty": (lambda: b"", "the file is empty"),
    "text": (lambda: b"<html>not found</html>", "not an image"),
    "truncated": (lambda: encoded(Image.fromarray(noise(90, 60)), "JPEG")[:900], "JPEG"),
}
