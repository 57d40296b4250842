"""Training windows: 6 x 6 cells around the print of one object, with local and whole-object labels.

A window is cheap (37 tokens) and shows readable print in most of its cells, so reading is learnt an
order of magnitude faster than on whole views.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdrpn_core.geometry import BoxXYXY, GridShape, Letterbox
from sdrpn_core.reference.scenes import Scene, SceneObject, make_scene
from sdrpn_core.reference.view_cache import FIRST_TRAINING_SEED
from sdrpn_core.reference.views import PATCH_SIDE
from sdrpn_core.reference.vocabulary import COLOURS, DIGITS, KINDS, LETTERS

WINDOW_GRID: Final = GridShape(6, 6)
WINDOW_SIDE: Final = WINDOW_GRID.width * PATCH_SIDE
# Per cell: colour, kind, letter and digit where they are printed, letter and digit of the object.
LABEL_SIZES: Final = (*(len(COLOURS), len(KINDS)), *(len(LETTERS), len(DIGITS)) * 2)
_PRINT_HEIGHTS: Final = (5.0, 22.0)
_LETTERBOX: Final = Letterbox.identity((WINDOW_SIDE, WINDOW_SIDE))


def render_windows(num_windows: int, shard: int) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Windows (N, 48, 48, 3) and their labels (N, 6, 36), -1 for none."""
    rng = np.random.default_rng([17, shard])
    pixels = np.zeros((num_windows, WINDOW_SIDE, WINDOW_SIDE, 3), dtype=np.uint8)
    labels = np.full((num_windows, len(LABEL_SIZES), WINDOW_GRID.num_cells), -1, dtype=np.int8)
    count, seed = 0, 2 * FIRST_TRAINING_SEED + shard * 10_000_000
    while count < num_windows:
        scene = make_scene(seed)
        seed += 1
        for thing in scene.objects[: num_windows - count]:
            if _render_window(scene, thing, pixels[count], labels[count], rng):
                count += 1
    return pixels, labels


def _render_window(
    scene: Scene,
    thing: SceneObject,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int8],
    rng: np.random.Generator,
) -> bool:
    """Fill one window; False if the print does not fit into it at the size drawn."""
    low, high = (math.log(height) for height in _PRINT_HEIGHTS)
    scale = math.exp(rng.uniform(low, high)) / thing.print_height
    code, side = thing.code_box, WINDOW_SIDE / scale
    if max(code.x1 - code.x0, code.y1 - code.y0) * scale > WINDOW_SIDE - 2:
        return False
    x0, y0 = (
        float(rng.uniform(code.x1 - side, code.x0)),
        float(rng.uniform(code.y1 - side, code.y0)),
    )
    part = scene.image.crop((round(x0), round(y0), round(x0 + side), round(y0 + side)))
    pixels[:] = np.asarray(part.resize((WINDOW_SIDE, WINDOW_SIDE), Image.Resampling.BICUBIC))
    middle = (code.x0 + code.x1) / 2
    names = (
        list(COLOURS).index(thing.colour),
        KINDS.index(thing.kind),
        *(LETTERS.index(thing.code[0]), DIGITS.index(thing.code[1])) * 2,
    )
    regions = (
        *((thing.box, 0.3), (thing.box, 0.3)),
        *((code._replace(x1=middle), 0.25), (code._replace(x0=middle), 0.25)),
        *((thing.box, 0.3), (thing.box, 0.3)),
    )
    for row, (name, (region, least)) in enumerate(zip(names, regions, strict=True)):
        corners = zip(region, (x0, y0, x0, y0), strict=True)
        moved = BoxXYXY(*((value - origin) * scale for value, origin in corners))
        labels[row, _LETTERBOX.coverage(moved, WINDOW_GRID).ravel() > least] = name
    return True
