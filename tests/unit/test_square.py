"""Features averaged to a coarser grid, against Pillow's own antialiased resizing."""

import numpy as np
import pytest
import torch
from PIL import Image

from sdrpn_core.geometry import GridShape
from sdrpn_core.models.square import averaged


@pytest.mark.parametrize("side", [1, 5, 8, 12, 23])
def test_averaged_features_are_what_pillow_makes_of_each_plane(side: int) -> None:
    grid, wanted = GridShape(24, 24), GridShape(side, side)
    tokens = torch.randn(24 * 24, 3, generator=torch.Generator().manual_seed(side))
    found = averaged(tokens, grid, wanted).T.reshape(3, side, side)
    for plane, small in zip(tokens.T.reshape(3, 24, 24), found, strict=True):
        picture = Image.fromarray(plane.numpy())
        resized = picture.resize((side, side), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(small.numpy(), np.asarray(resized), atol=1e-5)


def test_features_keep_their_precision_and_their_own_grid() -> None:
    tokens = torch.randn(16, 2, dtype=torch.bfloat16)
    assert averaged(tokens, GridShape(4, 4), GridShape(4, 4)) is tokens
    assert averaged(tokens, GridShape(4, 4), GridShape(2, 2)).dtype is torch.bfloat16
