"""Where images lie in a prompt: against a loop over its tokens."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.models.prompts import ImageFeatures, lay_out

IMAGE_TOKEN = 9
SHOWN = hnp.arrays(np.bool_, st.tuples(st.integers(1, 4), st.integers(1, 4)))
TEXT = st.lists(st.integers(0, 8), max_size=4)


BREAKS = st.lists(st.integers(0, 16), max_size=4)
"""Before which cell, or behind the last: several may follow each other."""


def image(shown: np.ndarray, before_cells: list[int]) -> ImageFeatures:
    grid = GridShape(*shown.shape)
    places = [min(place, grid.num_cells) for place in before_cells]
    breaks = np.insert(np.zeros(grid.num_cells, np.bool_), places, True)
    whole = ImageFeatures(
        torch.arange(len(breaks))[:, None],
        grid,
        Letterbox.identity((8, 8)),
        breaks=breaks if places else None,
    )
    return whole.showing(shown) if shown.any() else whole


def given_tokens(picture: ImageFeatures) -> list[tuple[int, bool]]:
    """Number of each token that the decoder gets, and whether it is a break."""
    shown = np.ones(picture.grid, np.bool_) if picture.shown is None else picture.shown
    cells, found = iter(shown.flat), []
    for number in range(len(picture.tokens)):
        is_break = picture.breaks is not None and bool(picture.breaks[number])
        if is_break or next(cells):
            found.append((number, is_break))
    return found


@given(SHOWN, BREAKS)
def test_breaks_are_given_whichever_cells_are_shown(
    shown: np.ndarray, before_cells: list[int]
) -> None:
    picture = image(shown, before_cells)
    numbers, are_breaks = zip(*given_tokens(picture), strict=True)
    assert picture.tokens[picture.given_tokens()].flatten().tolist() == list(numbers)
    assert picture.num_tokens == len(numbers)
    found = picture.given_breaks
    assert (np.zeros(len(numbers), np.bool_) if found is None else found).tolist() == [*are_breaks]


@given(TEXT, st.lists(st.tuples(SHOWN, BREAKS, TEXT), max_size=3))
def test_layout_equals_a_loop_over_the_tokens(
    before: list[int], images: list[tuple[np.ndarray, list[int], list[int]]]
) -> None:
    pictures = [image(shown, before_cells) for shown, before_cells, _ in images]
    ids, whole, columns, starts = list(before), list(before), list(range(len(before))), []
    for picture, (_, _, text) in zip(pictures, images, strict=True):
        ids += [IMAGE_TOKEN, *text]
        starts.append(len(columns))
        columns += [len(whole) + number for number, _ in given_tokens(picture)]
        whole += [IMAGE_TOKEN] * len(picture.tokens)
        columns += range(len(whole), len(whole) + len(text))
        whole += text
    layout = lay_out(ids, IMAGE_TOKEN, pictures)
    assert layout.ids.tolist() == whole
    assert layout.columns.tolist() == columns
    assert layout.starts == tuple(starts)
