"""What the model sees of a scene: a letterboxed view, and which object each grid cell shows.

Shapes: views are (96, 96, 3) uint8; cell maps are (12, 12) int8 holding an object's index,
``BACKGROUND`` or ``UNDECIDED`` (too little of an object to say).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdrpn_core.geometry import BoxXYXY, GridShape, Letterbox
from sdrpn_core.reference.scenes import BASE_SIDE, SceneObject

INPUT_SIDE: Final = BASE_SIDE
PATCH_SIDE: Final = 8
GRID: Final = GridShape(INPUT_SIDE // PATCH_SIDE, INPUT_SIDE // PATCH_SIDE)
BACKGROUND: Final = -1
UNDECIDED: Final = -2
PIXEL_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD: Final = (0.26862954, 0.26130258, 0.27577711)
MEAN_FILL: Final = (int(PIXEL_MEAN[0] * 255), int(PIXEL_MEAN[1] * 255), int(PIXEL_MEAN[2] * 255))


@dataclass(frozen=True, kw_only=True)
class View:
    """One view of a scene.

    ``print_heights`` (num_objects,) are in model-input pixels; 0 where the code is not in view.
    """

    pixels: NDArray[np.uint8]
    cells: NDArray[np.int8]
    print_heights: NDArray[np.float32]


def margin_box(box: BoxXYXY, margin: float) -> BoxXYXY:
    """``box`` grown on every side by ``margin`` times its longer side."""
    grow = margin * max(box.x1 - box.x0, box.y1 - box.y0)
    return BoxXYXY(box.x0 - grow, box.y0 - grow, box.x1 + grow, box.y1 + grow)


def draw_canvas(
    image: Image.Image, crop: BoxXYXY | None = None, fill: tuple[int, int, int] = MEAN_FILL
) -> Image.Image:
    """The image, or a crop of it, letterboxed to the model's input."""
    window = (crop or BoxXYXY.whole(image.size)).to_pixels(image.size)
    part = image.crop(window)
    return Letterbox.square(part.size).paste(part, fill, (INPUT_SIDE, INPUT_SIDE))


def render_view(
    image: Image.Image,
    objects: tuple[SceneObject, ...],
    crop: BoxXYXY | None = None,
    fill: tuple[int, int, int] = MEAN_FILL,
) -> View:
    """The whole image or a crop of it, as the model sees it.

    Args:
        image: source picture.
        objects: what is in it.
        crop: box in source pixels, or None for the whole image.
        fill: colour of the padding.
    """
    x0, y0, x1, y1 = (crop or BoxXYXY.whole(image.size)).to_pixels(image.size)
    window = BoxXYXY(x0, y0, x1, y1)
    letterbox = Letterbox.square((x1 - x0, y1 - y0))
    canvas = draw_canvas(image, crop, fill)
    scale = INPUT_SIDE / letterbox.canvas_width
    coverages = np.zeros((len(objects), *GRID), dtype=np.float32)
    print_heights = np.zeros(len(objects), dtype=np.float32)
    for index, thing in enumerate(objects):
        visible = thing.box.intersection(window)
        if visible.area <= 0:
            continue
        shifted = BoxXYXY(visible.x0 - x0, visible.y0 - y0, visible.x1 - x0, visible.y1 - y0)
        coverages[index] = letterbox.coverage(shifted, GRID)
        if window.coverage_of(thing.code_box) > 0.97:
            print_heights[index] = thing.print_height * scale
    return View(
        pixels=np.asarray(canvas, dtype=np.uint8),
        cells=_cell_map(coverages),
        print_heights=print_heights,
    )


def _cell_map(coverages: NDArray[np.float32]) -> NDArray[np.int8]:
    if len(coverages) == 0:
        return np.full(GRID, BACKGROUND, dtype=np.int8)
    best, share = coverages.argmax(axis=0), coverages.max(axis=0)
    cells = np.where(share >= 0.35, best, np.where(share > 0.03, UNDECIDED, BACKGROUND))
    return cells.astype(np.int8)
