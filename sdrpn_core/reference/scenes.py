"""Seeded generator of high-resolution scenes with questions, answers and the answers' boxes.

Sizes are stated in model-input pixels of a 96-pixel canvas ("base pixels") and scaled to the
source, so that print that is unreadable at the model's input is readable in a crop. A scene depends
on its seed and settings only. Boxes are ``BoxXYXY`` in source pixels.
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.reference.backgrounds import paint_background, paint_photograph
from sdrpn_core.reference.shapes import draw_object
from sdrpn_core.reference.vocabulary import (
    COLOURS,
    DIGITS,
    LETTERS,
    LINE_KINDS,
    QUESTION_TEMPLATES,
    SHAPE_KINDS,
    SIGN_KINDS,
    answer_about,
    question_about,
)

Layout = Literal["objects", "sign", "document"]
QuestionKind = Literal["natural", "textual"]
LAYOUTS: Final[tuple[Layout, ...]] = get_args(Layout)
BASE_SIDE: Final = 96
SIZES: Final = ((768, 512), (512, 768), (640, 640), (960, 540), (576, 768), (768, 768))
SMALL_PRINT: Final = 1.0
READABLE_PRINT: Final = 4.5


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object: unique in its scene by (colour, kind)."""

    colour: str
    kind: str
    code: str
    box: BoxXYXY
    code_box: BoxXYXY
    print_height: float

    @property
    def answer(self) -> str:
        """Reference answer to a question about this object."""
        return answer_about(self.colour, self.kind, self.code)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One question about one object of the scene."""

    question: str
    answer: str
    box: BoxXYXY
    object_index: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture, what is in it, and what can be asked about it."""

    image: Image.Image
    objects: tuple[SceneObject, ...]
    layout: Layout
    turns: tuple[Turn, ...]

    @property
    def question_kind(self) -> QuestionKind:
        """Documents ask to read text; the other layouts ask about things."""
        return "textual" if self.layout == "document" else "natural"


@dataclass(frozen=True, kw_only=True)
class _LayoutRule:
    """Sizes in base pixels: print height times ``per_print``, but at least ``width``."""

    kinds: tuple[str, ...]
    count: tuple[int, int]
    width: tuple[float, float]
    aspect: tuple[float, float]
    per_print: tuple[float, float]
    print_height: tuple[float, float]


_RULES: Final[dict[Layout, _LayoutRule]] = {
    "objects": _LayoutRule(
        kinds=SHAPE_KINDS,
        count=(2, 6),
        width=(13, 20),
        aspect=(1.0, 1.0),
        per_print=(3.7, 4.6),
        print_height=(1.8, 2.5),
    ),
    "sign": _LayoutRule(
        kinds=SIGN_KINDS,
        count=(1, 4),
        width=(16, 22),
        aspect=(1.4, 1.9),
        per_print=(4.2, 5.2),
        print_height=(2.0, 2.5),
    ),
    "document": _LayoutRule(
        kinds=LINE_KINDS,
        count=(2, 6),
        width=(17, 23),
        aspect=(2.6, 3.2),
        per_print=(5.6, 6.8),
        print_height=(2.1, 2.5),
    ),
}
_SHRINK_STEPS: Final = (1.0, 0.9, 0.8)


def make_scene(
    seed: int,
    *,
    layout: Layout | None = None,
    print_scale: float = SMALL_PRINT,
    size: tuple[int, int] | None = None,
) -> Scene:
    """Generate the scene of a seed.

    Args:
        seed: any non-negative int; equal arguments give equal scenes, in every process.
        layout: one layout, or None to draw it from the seed.
        print_scale: ``SMALL_PRINT`` is unreadable at the model's input, ``READABLE_PRINT`` is not.
        size: (width, height) of the source, or None to draw it from the seed.
    """
    rng = np.random.default_rng([20250916, seed])
    drawn_layout = LAYOUTS[int(rng.choice(3, p=(0.5, 0.2, 0.3)))]
    drawn_size = SIZES[int(rng.integers(len(SIZES)))]
    chosen_layout, chosen_size = layout or drawn_layout, size or drawn_size
    image = _paint_canvas(chosen_layout, chosen_size, rng)
    objects = _draw_objects(image, _RULES[chosen_layout], print_scale, rng)
    order = rng.permutation(len(objects))
    turns = tuple(_turn(objects[index], int(index), rng) for index in order)
    return Scene(image=image, objects=objects, layout=chosen_layout, turns=turns)


def _paint_canvas(layout: Layout, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    if layout == "sign":
        return paint_photograph(size, rng)
    if layout == "objects":
        return paint_background(size, rng)
    page = Image.new("RGB", size, (int(rng.integers(215, 246)),) * 3)
    draw, step = ImageDraw.Draw(page), max(size) * rng.uniform(0.018, 0.03)
    grey = (int(rng.integers(150, 205)),) * 3
    for y in np.arange(step, size[1] - step, step):
        left, right = rng.uniform(0.02, 0.4), rng.uniform(0.5, 0.97)
        draw.rectangle((left * size[0], y, right * size[0], y + step * 0.2), fill=grey)
    return page


def _draw_objects(
    image: Image.Image, rule: _LayoutRule, print_scale: float, rng: np.random.Generator
) -> tuple[SceneObject, ...]:
    names = [(colour, kind) for colour in COLOURS for kind in rule.kinds]
    names = _confusable_order(names, rng)
    wanted = int(rng.integers(rule.count[0], rule.count[1] + 1))
    objects: list[SceneObject] = []
    for colour, kind in names[:wanted]:
        full_size = _object_size(image.size, rule, print_scale, rng)
        taken = [other.box for other in objects]
        for shrink in _SHRINK_STEPS:
            print_height, width, height = (value * shrink for value in full_size)
            box = _free_box(image.size, (width, height), taken, rng)
            if box is not None:
                break
        if box is None:
            continue
        code = str(rng.choice(LETTERS)) + str(rng.choice(DIGITS))
        code_box = draw_object(image, box, colour, kind, code, print_height, rng)
        objects.append(
            SceneObject(
                colour=colour,
                kind=kind,
                code=code,
                box=box,
                code_box=code_box,
                print_height=print_height,
            )
        )
    return tuple(objects)


def _confusable_order(
    names: list[tuple[str, str]], rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Random order in which names that share a colour or kind with the first come early."""
    shuffled = [names[index] for index in rng.permutation(len(names))]
    first = shuffled[0]
    shared = [n for n in shuffled[1:] if n[0] == first[0] or n[1] == first[1]]
    others = [n for n in shuffled[1:] if n not in shared]
    num_shared = int(rng.integers(0, 2))
    return [first, *shared[:num_shared], *others, *shared[num_shared:]]


def _object_size(
    size: tuple[int, int], rule: _LayoutRule, print_scale: float, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Print height, width and height of one object in source pixels."""
    source_per_base = max(size) / BASE_SIDE
    print_height = rng.uniform(*rule.print_height) * print_scale
    width = max(rng.uniform(*rule.width), print_height * rng.uniform(*rule.per_print))
    width = min(width, 0.97 * min(size[0], size[1] * rule.aspect[0]) / source_per_base)
    print_height = min(print_height, width / rule.per_print[0])
    height = width / rng.uniform(*rule.aspect)
    return (print_height * source_per_base, width * source_per_base, height * source_per_base)


def _free_box(
    size: tuple[int, int],
    wanted: tuple[float, float],
    taken: list[BoxXYXY],
    rng: np.random.Generator,
) -> BoxXYXY | None:
    gap = max(size) / BASE_SIDE * 2.5
    for _ in range(40):
        x0 = float(np.floor(rng.uniform(0, size[0] - wanted[0])))
        y0 = float(np.floor(rng.uniform(0, size[1] - wanted[1])))
        box = BoxXYXY(x0, y0, x0 + wanted[0], y0 + wanted[1])
        padded = BoxXYXY(x0 - gap, y0 - gap, box.x1 + gap, box.y1 + gap)
        if all(padded.intersection(other).area == 0 for other in taken):
            return box
    return None


def _turn(target: SceneObject, index: int, rng: np.random.Generator) -> Turn:
    template_index = int(rng.integers(len(QUESTION_TEMPLATES)))
    return Turn(
        question=question_about(target.colour, target.kind, template_index),
        answer=target.answer,
        box=target.box,
        object_index=index,
    )
