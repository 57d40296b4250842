"""Drawing maps, labels and boxes on a picture, cell for cell.

All functions take the picture at any scale of the source image and return a new one; boxes are in
source pixels, maps are (h, w) on the grid of the letterboxed canvas. Padding is not drawn: every
picture pixel is coloured by the cell under it, so a cell half in the padding shows half.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data_contracts.enums import RoiLabel
from sdrpn_core.geometry import BoxXYXY, Letterbox
from sdrpn_core.regions import Region

RGB = tuple[int, int, int]
Stroke = tuple[float, float, float, float]
"""From (x, y) to (x, y)."""

TRUE_BOX_COLOUR: RGB = (0, 200, 83)
CROP_COLOUR: RGB = (255, 64, 129)
_PALENESS = 0.65
_RIM_COLOUR: RGB = (20, 20, 20)

_HEAT_STOPS: tuple[RGB, ...] = (
    (13, 8, 135),
    (126, 3, 168),
    (204, 71, 120),
    (248, 149, 64),
    (240, 249, 33),
)
"""Dark blue to yellow, evenly spaced; rising in lightness, so it also reads without colour."""

LABEL_COLOURS: dict[RoiLabel, RGB] = {
    RoiLabel.FOREGROUND: (0, 200, 83),
    RoiLabel.BACKGROUND: (41, 98, 255),
    RoiLabel.IGNORE: (158, 158, 158),
}
_LABEL_OPACITY = {RoiLabel.FOREGROUND: 0.55, RoiLabel.BACKGROUND: 0.40, RoiLabel.IGNORE: 0.60}


def shrink(image: Image.Image, max_side: int) -> Image.Image:
    """The picture with its longer side at most ``max_side`` pixels, proportions kept."""
    scale = min(max_side / max(image.size), 1.0)
    width, height = (max(round(side * scale), 1) for side in image.size)
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def draw_heat_map(
    image: Image.Image, values: NDArray[np.floating], letterbox: Letterbox, *, opacity: float = 0.75
) -> Image.Image:
    """Tint each cell by its value; 0 leaves the picture as it is, 1 is full colour.

    Args:
        image: the source image at any scale.
        values: (h, w) in [0, 1]; see ``relative_to_peak`` for others.
        letterbox: of the source image.
        opacity: of a cell with value 1.
    """
    level = np.clip(values.astype(np.float64), 0.0, 1.0)
    stops = np.linspace(0.0, 1.0, len(_HEAT_STOPS))
    channels = np.array(_HEAT_STOPS, dtype=np.float64).T
    colour = np.stack([np.interp(level, stops, channel) for channel in channels], axis=-1)
    return _blend(image, colour, opacity * level**0.7, letterbox)


def relative_to_peak(
    values: NDArray[np.floating], letterbox: Letterbox | None = None
) -> NDArray[np.float64]:
    """Map divided by its maximum, within the picture if a letterbox is given; (h, w) in [0, 1].

    Cells that are not finite are 0.
    """
    from_zero = np.where(np.isfinite(values), np.maximum(values.astype(np.float64), 0.0), 0.0)
    if letterbox is not None:
        height, width = values.shape
        rows, columns = _cells_of_pixels(letterbox, (height, width), letterbox.image_size)
        seen = np.zeros(values.shape, dtype=np.bool_)
        seen[np.ix_(np.unique(rows), np.unique(columns))] = True
        from_zero = np.where(seen, from_zero, 0.0)
    peak = float(from_zero.max(initial=0.0))
    return from_zero / peak if peak > 0 else from_zero


def draw_labels(
    image: Image.Image, labels: NDArray[np.integer], letterbox: Letterbox
) -> Image.Image:
    """Tint cells by pseudo-label, with ``LABEL_COLOURS``.

    Args:
        image: the source image at any scale.
        labels: (h, w) of ``RoiLabel`` values.
        letterbox: of the source image.
    """
    colour = np.zeros((*labels.shape, 3))
    opacity = np.zeros(labels.shape)
    for label in RoiLabel:
        colour[labels == label] = LABEL_COLOURS[label]
        opacity[labels == label] = _LABEL_OPACITY[label]
    return _blend(image, colour, opacity, letterbox)


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[BoxXYXY],
    source_size: tuple[int, int],
    colour: RGB,
    *,
    dashed: bool = False,
) -> Image.Image:
    """Outline boxes, with a dark rim so that they show on any background.

    Args:
        image: the source image at any scale.
        boxes: half-open, in source pixels.
        source_size: (width, height) of the source image.
        colour: of the outline.
        dashed: broken lines.
    """
    drawn = image.convert("RGB")  # a copy in any case
    draw = ImageDraw.Draw(drawn)
    thickness = max(round(max(image.size) / 130), 2)
    scales = image.width / source_size[0], image.height / source_size[1]
    for box in boxes:
        scaled = box.scaled(*scales)
        x0, y0 = round(scaled.x0), round(scaled.y0)
        # The last pixel inside a half-open box is one before its end.
        x1 = max(round(scaled.x1) - 1, x0)
        y1 = max(round(scaled.y1) - 1, y0)
        sides = [(x0, y0, x1, y0), (x1, y0, x1, y1), (x1, y1, x0, y1), (x0, y1, x0, y0)]
        strokes = [dash for side in sides for dash in _strokes(side, 4 * thickness, dashed)]
        for stroke in strokes:
            draw.rectangle(_bar(stroke, thickness + 2), fill=_RIM_COLOUR)
        for stroke in strokes:
            draw.rectangle(_bar(stroke, thickness), fill=colour)
    return drawn


def fade_hidden(
    image: Image.Image, regions: Sequence[Region], source_size: tuple[int, int]
) -> Image.Image:
    """Make pale what of the regions' boxes is not worth showing: masked crops leave it out.

    Tokens at its edge show a little of it all the same.

    Args:
        image: the source image at any scale.
        regions: in source pixels.
        source_size: (width, height) of the source image.
    """
    faded, shown = np.zeros((2, image.height, image.width), dtype=np.bool_)
    for region in regions:
        faded[_pixels(region.box, image.size, source_size)] = True
        for part in region.visible:
            shown[_pixels(part, image.size, source_size)] = True
    mask = Image.fromarray(255 * (faded & ~shown).astype(np.uint8))
    picture = image.convert("RGB")
    pale = Image.blend(picture, Image.new("RGB", picture.size, "white"), _PALENESS)
    return Image.composite(pale, picture, mask)


def joined(pictures: Sequence[Image.Image], *, in_column: bool = False) -> Image.Image:
    """Pictures of one size in a row, or one below the other, with white gaps between them."""
    width, height = pictures[0].size
    gap = max(max(width, height) // 30, 4)
    step_x, step_y = (0, height + gap) if in_column else (width + gap, 0)
    last = len(pictures) - 1
    canvas = Image.new("RGB", (width + last * step_x, height + last * step_y), "white")
    for place, picture in enumerate(pictures):
        canvas.paste(picture, (place * step_x, place * step_y))
    return canvas


def _pixels(
    box: BoxXYXY, size: tuple[int, int], source_size: tuple[int, int]
) -> tuple[slice, slice]:
    """Rows and columns of a picture whose pixels show a source-pixel box."""
    scaled = box.scaled(size[0] / source_size[0], size[1] / source_size[1])
    x0, y0, x1, y1 = scaled.to_pixels(size)
    return slice(y0, y1), slice(x0, x1)


def _bar(stroke: Stroke, width: int) -> Stroke:
    """What a thick stroke covers; its ends are as far beyond it as its sides, to close corners."""
    x0, y0, x1, y1 = stroke
    before, behind = (width - 1) // 2, width // 2
    return min(x0, x1) - before, min(y0, y1) - before, max(x0, x1) + behind, max(y0, y1) + behind


def _strokes(line: tuple[int, int, int, int], length: int, dashed: bool) -> list[Stroke]:
    """The line; if dashed, every other piece of it, starting with the first."""
    x0, y0, x1, y1 = line
    if not dashed:
        return [line]
    total = max(abs(x1 - x0), abs(y1 - y0), 1)
    pieces = []
    for start in range(0, total, 2 * length):
        first, last = start / total, min(start + length, total) / total
        pieces.append(
            (
                x0 + first * (x1 - x0),
                y0 + first * (y1 - y0),
                x0 + last * (x1 - x0),
                y0 + last * (y1 - y0),
            )
        )
    return pieces


def _blend(
    image: Image.Image,
    colour_hw3: NDArray[np.float64],
    opacity_hw: NDArray[np.float64],
    letterbox: Letterbox,
) -> Image.Image:
    """Mix each cell's colour into the pixels that lie in it."""
    height, width = opacity_hw.shape
    rows, columns = _cells_of_pixels(letterbox, (height, width), image.size)
    colour = colour_hw3[rows[:, None], columns[None, :]]
    opacity = opacity_hw[rows[:, None], columns[None, :], None]
    picture = np.asarray(image.convert("RGB"), dtype=np.float64)
    mixed = picture * (1 - opacity) + colour * opacity
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _cells_of_pixels(
    letterbox: Letterbox, grid: tuple[int, int], size: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Grid row of each pixel row and grid column of each pixel column, by pixel centre."""
    x = (np.arange(size[0]) + 0.5) * letterbox.image_width / size[0] + letterbox.pad_left
    y = (np.arange(size[1]) + 0.5) * letterbox.image_height / size[1] + letterbox.pad_top
    columns = (x * grid[1] / letterbox.canvas_width).astype(np.int64)
    rows = (y * grid[0] / letterbox.canvas_height).astype(np.int64)
    return rows.clip(0, grid[0] - 1), columns.clip(0, grid[1] - 1)
