"""Backgrounds of the scenes: plain, gradients, textures, and photographs shipped with scikit-image.

Photographs are dimmed and partly desaturated so that coloured objects stay findable on them.
"""

from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from data_contracts.errors import SdrpnError

# Inside the scikit-image wheel: none of these needs a download.
PHOTOGRAPHS: Final = (
    *("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png"),
    *("hubble_deep_field.jpg", "ihc.png", "brick.png", "grass.png", "gravel.png"),
    *("camera.png", "coins.png", "moon.png"),
)
_PHOTOGRAPH_SIDE: Final = 640


class ScenesUnavailable(SdrpnError):
    """Scenes cannot be generated on this machine; the message says what to install."""


def photograph_folder() -> Path:
    """Where the photographs are.

    Raises:
        ScenesUnavailable: if they are not installed.
    """
    try:
        import skimage
    except ImportError as error:
        raise ScenesUnavailable("scenes need scikit-image: pip install 'sdrpn[scenes]'") from error
    return Path(skimage.__file__).parent / "data"


def paint_background(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A plain, gradient, noise or photographic background.

    Args:
        size: (width, height) in pixels.
        rng: source of every choice.
    """
    style = rng.choice(4, p=(0.15, 0.2, 0.2, 0.45))
    if style == 0:
        return Image.new("RGB", size, _muted_colour(rng))
    if style == 1:
        return _gradient(size, rng)
    if style == 2:
        return _noise(size, rng)
    return paint_photograph(size, rng)


def paint_photograph(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A random part of a photograph, dimmed, blurred and desaturated.

    Args:
        size: (width, height) in pixels.
        rng: source of every choice.
    """
    photograph = _load_photograph(str(rng.choice(PHOTOGRAPHS)))
    window = _random_window(photograph.size, size, rng)
    picture = photograph.resize(size, Image.Resampling.BILINEAR, box=window)
    picture = picture.filter(ImageFilter.GaussianBlur(max(size) * rng.uniform(0.001, 0.004)))
    picture = ImageEnhance.Color(picture).enhance(rng.uniform(0.1, 0.5))
    veil = Image.new("RGB", size, _muted_colour(rng))
    return Image.blend(picture, veil, rng.uniform(0.25, 0.55))


@lru_cache(maxsize=len(PHOTOGRAPHS))
def _load_photograph(name: str) -> Image.Image:
    with Image.open(photograph_folder() / name) as picture:
        photograph = picture.convert("RGB")
    photograph.thumbnail((_PHOTOGRAPH_SIDE, _PHOTOGRAPH_SIDE))
    return photograph


def _random_window(
    available: tuple[int, int], wanted: tuple[int, int], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    fit = min(available[0] / wanted[0], available[1] / wanted[1]) * rng.uniform(0.6, 1.0)
    width, height = wanted[0] * fit, wanted[1] * fit
    x0, y0 = rng.uniform(0, available[0] - width), rng.uniform(0, available[1] - height)
    return x0, y0, x0 + width, y0 + height


def _muted_colour(rng: np.random.Generator) -> tuple[int, int, int]:
    grey = rng.uniform(50, 225)
    red, green, blue = (int(np.clip(grey + rng.uniform(-14, 14), 0, 255)) for _ in range(3))
    return red, green, blue


def _gradient(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    corners = np.array([[_muted_colour(rng) for _ in range(2)] for _ in range(2)], dtype=np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC)


def _noise(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    cells = int(rng.integers(6, 48))
    coarse = rng.normal(0, rng.uniform(6, 22), (cells, cells, 1))
    values = np.clip(np.array(_muted_colour(rng)) + coarse, 0, 255).astype(np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)
