"""Training views rendered ahead of time: shards of scenes, each with a whole view and three crops.

View 0 is the whole image, view 1 the first object's box with a jittered margin, view 2 a looser
window around it, view 3 a window anywhere. Rendering happens near the model's input resolution;
evaluation uses full-resolution files instead.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.reference.scenes import Scene, make_scene
from sdrpn_core.reference.views import GRID, INPUT_SIDE, MEAN_FILL, margin_box, render_view
from sdrpn_core.reference.vocabulary import TOKEN_IDS

MAX_OBJECTS: Final = 8
NUM_VIEWS: Final = 4
SCENES_PER_SHARD: Final = 500
# Training seeds lie above every seed that evaluation or a user's data may use.
FIRST_TRAINING_SEED: Final = 1_000_000_000
_ASPECTS: Final = ((1.0, 0.667), (0.667, 1.0), (1.0, 1.0), (1.0, 0.5625), (0.75, 1.0))


@dataclass(frozen=True, kw_only=True)
class SceneViews:
    """Rendered scenes. N scenes, V views, K objects.

    pixels (N, V, 96, 96, 3) uint8; cells (N, V, 12, 12) int8; print_heights (N, V, K) float32;
    attributes (N, K, 4) int64 token ids of colour, kind, letter, digit (0 = no such object).
    """

    pixels: NDArray[np.uint8]
    cells: NDArray[np.int8]
    print_heights: NDArray[np.float32]
    attributes: NDArray[np.int64]


def render_shard(shard: int) -> SceneViews:
    """Render the scenes of one shard; depends on the shard's number only."""
    pixels = np.zeros((SCENES_PER_SHARD, NUM_VIEWS, INPUT_SIDE, INPUT_SIDE, 3), dtype=np.uint8)
    cells = np.zeros((SCENES_PER_SHARD, NUM_VIEWS, *GRID), dtype=np.int8)
    heights = np.zeros((SCENES_PER_SHARD, NUM_VIEWS, MAX_OBJECTS), dtype=np.float32)
    attributes = np.zeros((SCENES_PER_SHARD, MAX_OBJECTS, 4), dtype=np.int64)
    for row in range(SCENES_PER_SHARD):
        seed = FIRST_TRAINING_SEED + shard * SCENES_PER_SHARD + row
        rng = np.random.default_rng([7, seed])
        scene = _training_scene(seed, rng)
        for index, thing in enumerate(scene.objects):
            names = (thing.colour, thing.kind, thing.code[0].lower(), thing.code[1])
            attributes[row, index] = [TOKEN_IDS[name] for name in names]
        for view_index, crop in enumerate(_windows(scene, rng)):
            view = render_view(scene.image, scene.objects, crop, _fill(scene, rng))
            pixels[row, view_index], cells[row, view_index] = view.pixels, view.cells
            heights[row, view_index, : len(scene.objects)] = view.print_heights
    return SceneViews(pixels=pixels, cells=cells, print_heights=heights, attributes=attributes)


def load_shards(directory: Path) -> SceneViews:
    """Join the shards that are present, in order."""
    shards = [np.load(path) for path in sorted(directory.glob("shard-*.npz"))]
    names = ("pixels", "cells", "print_heights", "attributes")
    return SceneViews(**{name: np.concatenate([s[name] for s in shards]) for name in names})


def _training_scene(seed: int, rng: np.random.Generator) -> Scene:
    is_small = rng.random() < 0.45
    side = int(rng.integers(380, 560)) if is_small else int(rng.integers(192, 300))
    across, down = _ASPECTS[int(rng.integers(len(_ASPECTS)))]
    size = (round(side * across), round(side * down))
    print_scale = 1.0 if is_small else float(rng.uniform(2.0, 5.0))
    layouts = ("objects", "sign", "document")
    layout = layouts[int(rng.choice(3, p=(0.5, 0.22, 0.28)))]
    return make_scene(seed, layout=layout, print_scale=print_scale, size=size)  # type: ignore[arg-type]


def _fill(scene: Scene, rng: np.random.Generator) -> tuple[int, int, int]:
    if rng.random() < 0.6:
        return MEAN_FILL
    red, green, blue = scene.image.resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    return int(red), int(green), int(blue)


def _windows(scene: Scene, rng: np.random.Generator) -> list[BoxXYXY | None]:
    target = scene.objects[0].box
    cell = max(scene.image.size) / GRID.width
    tight = margin_box(target, float(rng.uniform(0.0, 0.25)))
    longer = max(target.x1 - target.x0, target.y1 - target.y0)
    moved_x, moved_y = rng.uniform(-0.1, 0.1, 2) * longer
    tight = BoxXYXY(tight.x0 + moved_x, tight.y0 + moved_y, tight.x1 + moved_x, tight.y1 + moved_y)
    loose_size = longer + rng.uniform(0.3, 2.8, 2) * cell
    loose = _window_around(target.center, loose_size, rng.uniform(-0.3, 0.3, 2))
    anywhere = (float(rng.uniform(0, scene.image.width)), float(rng.uniform(0, scene.image.height)))
    random_window = _window_around(anywhere, rng.uniform(1.5, 6, 2) * cell, np.zeros(2))
    return [None, tight, loose, random_window]


def _window_around(
    center: tuple[float, float], size: NDArray[np.float64], shift: NDArray[np.float64]
) -> BoxXYXY:
    x, y = center[0] + shift[0] * size[0] / 2, center[1] + shift[1] * size[1] / 2
    return BoxXYXY(x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2)


def main() -> None:
    """Render shards ``first .. first + count * step`` by ``step`` into a directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--step", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number in range(arguments.count):
        shard = arguments.first + number * arguments.step
        views = render_shard(shard)
        path = arguments.out / f"shard-{shard:05d}.npz"
        partial = path.with_name(f"partial-{path.name}")
        np.savez(partial, **vars(views))
        partial.rename(path)


if __name__ == "__main__":
    main()
