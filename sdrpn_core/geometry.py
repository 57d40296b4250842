"""Boxes, grids and the letterbox: the only place where coordinates are converted.

Conventions, used everywhere:
    * pixel boxes are ``BoxXYXY``: floats, half-open ``[x0, x1) x [y0, y1)``, in source-image pixels
      unless a name says canvas;
    * cell boxes are ``GridBox``: ints, half-open, in grid cells;
    * grids are ``GridShape(height, width)``; image sizes are ``(width, height)`` as in Pillow;
    * the canvas is the square (or the image itself) that the model sees; a grid divides it evenly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FloatArray = NDArray[np.float64]

SMALLEST_COVERAGE = 1e-4
"""A smaller share of a cell is rounding, not content."""
MAX_CANVAS_PIXELS = 100_000_000
"""Larger canvases are drawn at the model's size straight away (20000 x 100 pads to a gigabyte)."""


class GridShape(NamedTuple):
    """Image-token lattice, (height, width) in cells."""

    height: int
    width: int

    @property
    def num_cells(self) -> int:
        """Number of image tokens on the grid."""
        return self.height * self.width


class GridBox(NamedTuple):
    """Half-open box in grid cells."""

    x0: int
    y0: int
    x1: int
    y1: int


class BoxXYXY(NamedTuple):
    """Half-open box in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    @classmethod
    def whole(cls, image_size: tuple[int, int]) -> Self:
        """All of an image of this (width, height)."""
        return cls(0.0, 0.0, float(image_size[0]), float(image_size[1]))

    @property
    def area(self) -> float:
        """Area in square pixels; 0 for an empty box."""
        return max(self.x1 - self.x0, 0.0) * max(self.y1 - self.y0, 0.0)

    @property
    def center(self) -> tuple[float, float]:
        """Centre as (x, y)."""
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    def intersection(self, other: "BoxXYXY") -> "BoxXYXY":
        """Overlap with ``other``; has area 0 when they do not meet."""
        return BoxXYXY(
            max(self.x0, other.x0),
            max(self.y0, other.y0),
            min(self.x1, other.x1),
            min(self.y1, other.y1),
        )

    def scaled(self, scale_x: float, scale_y: float) -> "BoxXYXY":
        """The same box on a picture of another size."""
        return BoxXYXY(self.x0 * scale_x, self.y0 * scale_y, self.x1 * scale_x, self.y1 * scale_y)

    def shows_part_of(self, image_size: tuple[int, int]) -> bool:
        """Whether any of it lies in an image of this (width, height)."""
        return self.intersection(BoxXYXY.whole(image_size)).area > 0

    def coverage_of(self, target: "BoxXYXY") -> float:
        """Share of ``target``'s area that lies inside this box, in [0, 1]."""
        return self.intersection(target).area / target.area if target.area > 0 else 0.0

    def crop(self, image: Image.Image) -> Image.Image:
        """Cut this source-pixel box out of an image; never empty."""
        return image.crop(self.to_pixels(image.size))

    def to_pixels(self, image_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Smallest whole-pixel box that contains this one, clipped to the image.

        The result always has at least one pixel: a crop of it is never empty.

        Args:
            image_size: (width, height) of the image.
        """
        width, height = image_size
        x0 = min(max(math.floor(self.x0 + 1e-6), 0), width - 1)
        y0 = min(max(math.floor(self.y0 + 1e-6), 0), height - 1)
        x1 = min(max(math.ceil(self.x1 - 1e-6), x0 + 1), width)
        y1 = min(max(math.ceil(self.y1 - 1e-6), y0 + 1), height)
        return x0, y0, x1, y1


@dataclass(frozen=True, kw_only=True)
class Letterbox:
    """Placement of an image on the canvas that the model sees, at source resolution.

    The canvas is measured in source pixels; resizing it to the model's input changes no relation
    between boxes and grid cells, so the model's input size does not appear here.
    """

    image_width: int
    image_height: int
    pad_left: int
    pad_top: int
    canvas_width: int
    canvas_height: int

    @classmethod
    def square(cls, image_size: tuple[int, int]) -> "Letterbox":
        """Centre the image on a square of its longer side (LLaVA's ``expand2square``).

        Args:
            image_size: (width, height) in pixels.
        """
        side = max(image_size)
        return cls.centred(image_size, (side, side))

    @classmethod
    def centred(cls, image_size: tuple[int, int], canvas_size: tuple[int, int]) -> "Letterbox":
        """Centre the image on a canvas that is no smaller.

        Args:
            image_size: (width, height) in pixels.
            canvas_size: (width, height) in pixels.
        """
        (width, height), (canvas_width, canvas_height) = image_size, canvas_size
        return cls(
            image_width=width,
            image_height=height,
            pad_left=(canvas_width - width) // 2,
            pad_top=(canvas_height - height) // 2,
            canvas_width=canvas_width,
            canvas_height=canvas_height,
        )

    @classmethod
    def identity(cls, image_size: tuple[int, int]) -> "Letterbox":
        """No padding: the canvas is the image (models with dynamic grids).

        Args:
            image_size: (width, height) in pixels.
        """
        return cls.centred(image_size, image_size)

    @classmethod
    def limited(cls, image_size: tuple[int, int], max_ratio: float) -> "Letterbox":
        """No padding, except that the longer side is at most ``max_ratio`` times the shorter.

        Args:
            image_size: (width, height) in pixels.
            max_ratio: what the model's image processor accepts.
        """
        width, height = image_size
        canvas_width = max(width, math.ceil(height / max_ratio))
        canvas_height = max(height, math.ceil(width / max_ratio))
        return cls.centred(image_size, (canvas_width, canvas_height))

    @property
    def image_size(self) -> tuple[int, int]:
        """(width, height) of the source image in pixels."""
        return self.image_width, self.image_height

    @property
    def placement(self) -> tuple[int, int, int, int]:
        """(width, height) of the image and of the canvas that it is centred on, in its pixels."""
        return *self.image_size, self.canvas_width, self.canvas_height

    def paste(
        self,
        image: Image.Image,
        fill: tuple[int, int, int],
        size: tuple[int, int],
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> Image.Image:
        """Draw the canvas: the image, RGB, padded with ``fill`` and resized to ``size`` (w, h)."""
        if image.size != self.image_size:
            raise ValueError(f"letterbox is for {self.image_size} pixels, image has {image.size}")
        if self.canvas_width * self.canvas_height > MAX_CANVAS_PIXELS:
            return self._paste_thin(image, fill, size, resample)
        canvas = image
        if image.size != (self.canvas_width, self.canvas_height):
            canvas = Image.new("RGB", (self.canvas_width, self.canvas_height), fill)
            canvas.paste(image, (self.pad_left, self.pad_top))
        return canvas.resize(size, resample)

    def _paste_thin(
        self,
        image: Image.Image,
        fill: tuple[int, int, int],
        size: tuple[int, int],
        resample: Image.Resampling,
    ) -> Image.Image:
        """Draw the canvas of a very long and thin image without ever holding it at full size."""
        scale_x, scale_y = size[0] / self.canvas_width, size[1] / self.canvas_height
        width, height = max(round(image.width * scale_x), 1), max(round(image.height * scale_y), 1)
        canvas = Image.new("RGB", size, fill)
        corner = (round(self.pad_left * scale_x), round(self.pad_top * scale_y))
        canvas.paste(image.resize((width, height), resample), corner)
        return canvas

    def to_canvas(self, box: BoxXYXY) -> BoxXYXY:
        """Source-pixel box -> canvas-pixel box."""
        return BoxXYXY(
            box.x0 + self.pad_left,
            box.y0 + self.pad_top,
            box.x1 + self.pad_left,
            box.y1 + self.pad_top,
        )

    def to_image(self, box: BoxXYXY) -> BoxXYXY:
        """Canvas-pixel box -> source-pixel box, clipped to the image (area 0 if all padding)."""
        x0, x1 = (min(max(x - self.pad_left, 0.0), float(self.image_width)) for x in box[0::2])
        y0, y1 = (min(max(y - self.pad_top, 0.0), float(self.image_height)) for y in box[1::2])
        return BoxXYXY(x0, y0, x1, y1)

    def cell_size(self, grid: GridShape) -> tuple[float, float]:
        """Size of one grid cell as (width, height) in source pixels."""
        return self.canvas_width / grid.width, self.canvas_height / grid.height

    def cells_to_image(self, box: GridBox, grid: GridShape, margin: float = 0.0) -> BoxXYXY:
        """Grid box -> source-pixel box, clipped to the image (area 0 if all padding).

        Args:
            box: in cells.
            grid: of the canvas.
            margin: added to each side, in cells.
        """
        cell_width, cell_height = self.cell_size(grid)
        return self.to_image(
            BoxXYXY(
                (box.x0 - margin) * cell_width,
                (box.y0 - margin) * cell_height,
                (box.x1 + margin) * cell_width,
                (box.y1 + margin) * cell_height,
            )
        )

    def coverage(self, box: BoxXYXY, grid: GridShape) -> NDArray[np.float32]:
        """Share of each grid cell covered by a source-pixel box, (h, w) in [0, 1]; exact."""
        along_y, along_x = self._overlaps([box], grid)
        return (along_y[0, :, None] * along_x[0, None, :]).astype(np.float32)

    def touched(self, boxes: Sequence[BoxXYXY], grid: GridShape) -> NDArray[np.bool_]:
        """Cells that show any part of any of these source-pixel boxes, (h, w)."""
        along_y, along_x = (part > SMALLEST_COVERAGE for part in self._overlaps(boxes, grid))
        touched: NDArray[np.bool_] = along_y.T @ along_x
        return touched

    def content_mask(self, grid: GridShape) -> NDArray[np.bool_]:
        """Cells that show any of the image, (h, w); the others are padding only."""
        return self.touched([BoxXYXY.whole(self.image_size)], grid)

    def _overlaps(self, boxes: Sequence[BoxXYXY], grid: GridShape) -> tuple[FloatArray, FloatArray]:
        """(boxes, h) and (boxes, w) share of each row and each column that a box covers."""
        edges = np.array([self.to_canvas(box) for box in boxes], dtype=np.float64).reshape(-1, 4)
        cell_width, cell_height = self.cell_size(grid)
        return (
            _overlap_ratios(edges[:, 1::2] / cell_height, grid.height),
            _overlap_ratios(edges[:, 0::2] / cell_width, grid.width),
        )


def _overlap_ratios(intervals: FloatArray, num_cells: int) -> FloatArray:
    """(N, 2) intervals [start, stop) -> (N, cells) share of each unit cell [i, i + 1) covered."""
    first = np.arange(num_cells, dtype=np.float64)
    start, stop = intervals[:, :1], intervals[:, 1:]
    overlap: FloatArray = np.minimum(first + 1, stop) - np.maximum(first, start)
    return overlap.clip(0.0, 1.0)
