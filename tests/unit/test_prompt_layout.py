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


def image(shown: np.ndarray) -> ImageFeatures:
    grid = GridShape(*shown.shape)
    whole = ImageFeatures(torch.zeros(grid.num_cells, 1), grid, Letterbox.identity((8, 8)))
    return whole.showing(shown) if shown.any() else whole


@given(TEXT, st.lists(st.tuples(SHOWN, TEXT), max_size=3))
def test_layout_equals_a_loop_over_the_tokens(
    before: list[int], images: list[tuple[np.ndarray, list[int]]]
) -> None:
    pictures = [image(shown) for shown, _ in images]
    ids, whole, columns, starts = list(before), list(before), list(range(len(before))), []
    for picture, (_, text) in zip(pictures, images, strict=True):
        ids += [IMAGE_TOKEN, *text]
        starts.append(len(columns))
        shown = np.ones(picture.grid, np.bool_) if picture.shown is None else picture.shown
        columns += [len(whole) + cell for cell in range(shown.size) if shown.flat[cell]]
        whole += [IMAGE_TOKEN] * shown.size
        columns += range(len(whole), len(whole) + len(text))
        whole += text
    layout = lay_out(ids, IMAGE_TOKEN, pictures)
    assert layout.ids.tolist() == whole
    assert layout.columns.tolist() == columns
    assert layout.starts == tuple(starts)
