"""Training pages full of codes: dense practice in reading for the vision tower.

In a scene only a few cells show print, so that reading would be found very late.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sdrpn_core.geometry import BoxXYXY, Letterbox
from sdrpn_core.reference.backgrounds import paint_background
from sdrpn_core.reference.shapes import PLATE_SIZE, print_code
from sdrpn_core.reference.views import GRID, INPUT_SIDE
from sdrpn_core.reference.vocabulary import COLOURS, DIGITS, LETTERS

_MIN_SHARE: Final = 0.2
_LETTERBOX: Final = Letterbox.identity((INPUT_SIDE, INPUT_SIDE))


@dataclass(frozen=True, kw_only=True)
class GlyphPage:
    """One page: pixels (96, 96, 3) uint8; index of the letter and digit on each cell, -1 for none.

    ``letters`` and ``digits`` are (12, 12) int64 indices into ``LETTERS`` and ``DIGITS``.
    """

    pixels: NDArray[np.uint8]
    letters: NDArray[np.int64]
    digits: NDArray[np.int64]


def make_glyph_page(rng: np.random.Generator) -> GlyphPage:
    """Rows of codes of mixed sizes on plates, on a background or in colour."""
    side = 2 * INPUT_SIDE
    image = paint_background((side, side), rng)
    shares = np.full((2, *GRID), _MIN_SHARE, dtype=np.float32)
    names = np.full((2, *GRID), -1, dtype=np.int64)
    top = float(rng.uniform(0, 8))
    while True:
        height = float(np.exp(rng.uniform(np.log(5.0), np.log(22.0)))) * 2
        row_height = height * PLATE_SIZE[1] * rng.uniform(1.0, 1.3)
        if top + row_height > side:
            break
        _fill_row(image, top + row_height / 2, height, shares, names, rng)
        top += row_height
    pixels = np.asarray(image.resize((INPUT_SIDE, INPUT_SIDE), Image.Resampling.BICUBIC))
    return GlyphPage(pixels=pixels, letters=names[0], digits=names[1])


def _fill_row(
    image: Image.Image,
    center_y: float,
    height: float,
    shares: NDArray[np.float32],
    names: NDArray[np.int64],
    rng: np.random.Generator,
) -> None:
    draw = ImageDraw.Draw(image)
    width, tall = PLATE_SIZE[0] * height, PLATE_SIZE[1] * height
    left = float(rng.uniform(0, width / 2))
    while left + width <= image.width:
        center_x = left + width / 2
        if rng.random() < 0.5:
            paint = list(COLOURS.values())[int(rng.integers(len(COLOURS)))]
            grown = (left - 3, center_y - tall / 2 - 3, left + width + 3, center_y + tall / 2 + 3)
            draw.rectangle(grown, fill=paint)
        is_light = bool(rng.random() < 0.8)
        plate = (left, center_y - tall / 2, left + width, center_y + tall / 2)
        draw.rectangle(plate, fill=(248, 248, 245) if is_light else (25, 25, 30))
        ink = (15, 15, 20) if is_light else (250, 250, 250)
        code = int(rng.integers(len(LETTERS))), int(rng.integers(len(DIGITS)))
        text = LETTERS[code[0]] + DIGITS[code[1]]
        box = print_code(image, center_x, center_y, text, height, ink)
        middle = (box.x0 + box.x1) / 2
        halves = (box._replace(x1=middle), box._replace(x0=middle))
        for row, (half, name) in enumerate(zip(halves, code, strict=True)):
            _mark(shares[row], names[row], half, name)
        left += width * float(rng.uniform(1.05, 1.7))


def _mark(shares: NDArray[np.float32], names: NDArray[np.int64], box: BoxXYXY, name: int) -> None:
    """Name the cells of which ``box`` (on the doubled page) covers more than anything before."""
    share = _LETTERBOX.coverage(BoxXYXY(*(value / 2 for value in box)), GRID)
    is_best = share > shares
    shares[is_best] = share[is_best]
    names[is_best] = name
