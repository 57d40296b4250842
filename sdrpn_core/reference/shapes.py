"""Drawing of one object: a coloured shape with a two-character code printed on a plate in it."""

import math
from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.reference.vocabulary import COLOURS, RGB

_MASTER_HEIGHT: Final = 48
# Width of a code's print and of its plate, in units of the print height.
PRINT_WIDTH: Final = 1.75
PLATE_SIZE: Final = (2.25, 1.55)
_POLYGONS: Final[dict[str, tuple[tuple[float, float], ...]]] = {
    "square": ((0, 0), (1, 0), (1, 1), (0, 1)),
    "triangle": ((0.5, 0), (1, 1), (0, 1)),
    "diamond": ((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)),
    "cross": (
        *((0.3, 0), (0.7, 0), (0.7, 0.3), (1, 0.3), (1, 0.7), (0.7, 0.7)),
        *((0.7, 1), (0.3, 1), (0.3, 0.7), (0, 0.7), (0, 0.3), (0.3, 0.3)),
    ),
    "star": tuple(
        (
            0.5
            + (0.5 if i % 2 == 0 else 0.27) * math.sin(i * math.pi / 5) / math.sin(0.4 * math.pi),
            0.5 - (0.5 if i % 2 == 0 else 0.27) * math.cos(i * math.pi / 5),
        )
        for i in range(10)
    ),
    "sign": ((0, 0), (1, 0), (1, 1), (0, 1)),
    "tag": ((0, 0.5), (0.22, 0), (1, 0), (1, 1), (0.22, 1)),
}


def draw_object(
    image: Image.Image,
    box: BoxXYXY,
    colour: str,
    kind: str,
    code: str,
    print_height: float,
    rng: np.random.Generator,
) -> BoxXYXY:
    """Draw one object into ``image``; returns the box of its printed code.

    Args:
        image: picture to draw on, changed in place.
        box: the object's box in pixels.
        colour: name of the colour.
        kind: name of the shape.
        code: letter and digit.
        print_height: height of a capital letter in pixels.
        rng: source of the colour's jitter and of the plate's style.
    """
    paint = _jittered(COLOURS[colour], rng)
    draw = ImageDraw.Draw(image)
    if kind == "line":
        return _draw_line(image, draw, box, paint, code, print_height)
    width, height = box.x1 - box.x0, box.y1 - box.y0
    outline = tuple(int(value * 0.55) for value in paint)
    if kind == "circle":
        draw.ellipse(tuple(box), fill=paint, outline=outline)
    else:
        points = [(box.x0 + x * width, box.y0 + y * height) for x, y in _POLYGONS[kind]]
        draw.polygon(points, fill=paint, outline=outline)
    if kind == "sign":
        inset = max(width * 0.05, 1.0)
        border = (box.x0 + inset, box.y0 + inset, box.x1 - inset, box.y1 - inset)
        draw.rectangle(border, outline=(250, 250, 250), width=max(round(width * 0.04), 1))
    center_x, center_y = _plate_center(box, kind)
    is_light = bool(rng.random() < 0.75)
    plate = _box_around(center_x, center_y, *(side * print_height for side in PLATE_SIZE))
    draw.rectangle(tuple(plate), fill=(248, 248, 245) if is_light else (25, 25, 30))
    ink = (15, 15, 20) if is_light else (250, 250, 250)
    return print_code(image, center_x, center_y, code, print_height, ink)


def _draw_line(
    image: Image.Image,
    draw: ImageDraw.ImageDraw,
    box: BoxXYXY,
    paint: RGB,
    code: str,
    print_height: float,
) -> BoxXYXY:
    tab_end = box.x1 - PLATE_SIZE[0] * print_height * 1.1
    draw.rectangle(tuple(box), fill=(250, 250, 250))
    draw.rectangle((box.x0, box.y0, tab_end, box.y1), fill=paint)
    center_y = (box.y0 + box.y1) / 2
    return print_code(image, (tab_end + box.x1) / 2, center_y, code, print_height, (15, 15, 20))


def _plate_center(box: BoxXYXY, kind: str) -> tuple[float, float]:
    across, down = {"triangle": (0.5, 0.68), "tag": (0.58, 0.5), "star": (0.5, 0.52)}.get(
        kind, (0.5, 0.5)
    )
    return box.x0 + across * (box.x1 - box.x0), box.y0 + down * (box.y1 - box.y0)


def _box_around(x: float, y: float, width: float, height: float) -> BoxXYXY:
    return BoxXYXY(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def print_code(
    image: Image.Image, x: float, y: float, code: str, print_height: float, ink: RGB
) -> BoxXYXY:
    """Print a code centred at (x, y); returns its box."""
    height = max(round(print_height), 1)
    width = max(round(print_height * PRINT_WIDTH), 2)
    mask = _code_mask(code).resize((width, height), Image.Resampling.BICUBIC)
    left, top = round(x - width / 2), round(y - height / 2)
    image.paste(ink, (left, top, left + width, top + height), mask)
    return BoxXYXY(float(left), float(top), float(left + width), float(top + height))


@lru_cache(maxsize=256)
def _code_mask(code: str) -> Image.Image:
    """Master print of a code, both glyphs stretched to the full height."""
    gap = round(_MASTER_HEIGHT * 0.15)
    glyph_width = round((_MASTER_HEIGHT * PRINT_WIDTH - gap) / 2)
    mask = Image.new("L", (2 * glyph_width + gap, _MASTER_HEIGHT), 0)
    for index, character in enumerate(code):
        glyph = _glyph_mask(character)
        wide = min(round(glyph.width * _MASTER_HEIGHT / glyph.height), glyph_width)
        glyph = glyph.resize((wide, _MASTER_HEIGHT), Image.Resampling.BICUBIC)
        mask.paste(glyph, (index * (glyph_width + gap) + (glyph_width - wide) // 2, 0))
    return mask


def _glyph_mask(character: str) -> Image.Image:
    font = ImageFont.load_default(size=64)
    canvas = Image.new("L", (160, 160), 0)
    ImageDraw.Draw(canvas).text((40, 40), character, fill=255, font=font, stroke_width=4)
    return canvas.crop(canvas.getbbox())


def _jittered(colour: RGB, rng: np.random.Generator) -> RGB:
    red, green, blue = (int(np.clip(v + rng.uniform(-14, 14), 0, 255)) for v in colour)
    return red, green, blue
