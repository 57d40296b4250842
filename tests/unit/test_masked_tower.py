"""Patches of shown tokens, and features averaged over the seen ones, against plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

from sdrpn_core.geometry import GridShape
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.masked_tower import tower_states
from sdrpn_core.models.square import averaged, averaged_where, refined
from tests.zoom_checks import check_batched_equals_alone, random_images, random_pipeline

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6))
FINE = GridShape(7, 12)


@settings(deadline=None)
@given(hnp.arrays(np.bool_, SHAPES), SHAPES)
def test_patches_of_a_token_are_those_whose_centres_it_holds(
    cells: np.ndarray, more: tuple[int, int]
) -> None:
    grid = GridShape(*(coarse + extra for coarse, extra in zip(cells.shape, more, strict=True)))
    found = refined(cells, grid)
    assert found.shape == grid
    for row, column in np.ndindex(grid):
        across = (column + 0.5) / grid.width * cells.shape[1]
        down = (row + 0.5) / grid.height * cells.shape[0]
        assert found[row, column] == cells[int(down + 1e-9), int(across + 1e-9)]
    np.testing.assert_array_equal(refined(cells.T, GridShape(*grid[::-1])), found.T)
    assert found.any() == cells.any(), "a token without a patch"


@pytest.mark.parametrize("wanted", [(7, 12), (3, 3), (2, 5), (1, 1)])
def test_averages_are_of_seen_patches_only(wanted: tuple[int, int]) -> None:
    """Weights are those of all patches, made to sum to one again."""
    grid, rng = GridShape(*wanted), np.random.default_rng(0)
    tokens = rng.normal(size=(FINE.num_cells, 4))
    seen = rng.random(FINE) < 0.4
    weights = averaged(torch.eye(FINE.num_cells), FINE, grid).numpy()
    found = averaged_where(seen, torch.from_numpy(tokens[seen.ravel()]), grid).numpy()
    for cell, row in enumerate(weights):
        own = row * seen.ravel()
        expected = own @ tokens / own.sum() if own.sum() else np.zeros(4)
        np.testing.assert_allclose(found[cell], expected, atol=1e-5)
    whole = averaged_where(np.ones(FINE, np.bool_), torch.from_numpy(tokens), grid)
    torch.testing.assert_close(whole, averaged(torch.from_numpy(tokens), FINE, grid))


def test_states_at_any_depth_are_those_of_the_stock_tower() -> None:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    tower, pixels = CLIPVisionModel(config).eval(), torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        stock = tower(pixels, output_hidden_states=True).hidden_states
        found = tower_states(tower, pixels, [np.ones(4, np.bool_)] * 2, [-2, 0, -1, 3])
    for row, states in enumerate(found):
        for ours, depth in zip(states, [2, 0, 3, 3], strict=True):
            torch.testing.assert_close(ours, stock[depth][row, 1:])


def test_another_tower_is_refused() -> None:
    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8)
    with pytest.raises(ModelError, match=r"dinov2.* cannot leave out .*: leave out mask_tower"):
        tower_states(Dinov2Model(config), torch.zeros(1, 3, 8, 8), [np.ones(1, np.bool_)], [-1])


@pytest.mark.parametrize("crop_tokens", [None, 9])
def test_a_masked_tower_answers_batched_as_alone(
    adapter: ModelAdapter, monkeypatch: pytest.MonkeyPatch, crop_tokens: int | None
) -> None:
    """And the tower gets fewer patches than there are."""
    calls: list[int] = []
    encode = type(adapter).encode_masked

    def spy(self: ModelAdapter, prepared: object, shown: list[np.ndarray]) -> object:
        calls.extend(int(cells.sum()) - cells.size for cells in shown)
        return encode(self, prepared, shown)

    monkeypatch.setattr(type(adapter), "encode_masked", spy)
    pipeline = random_pipeline(
        adapter,
        mask_threshold_ratio=1.0,
        mask_tower=True,
        min_box_side=3,
        crop_tokens=crop_tokens,
    )
    images: list[Image.Image] = random_images([(90, 60), (40, 80), (64, 64)])
    counts = check_batched_equals_alone(pipeline, images, ["what is it ?"] * 3)
    assert counts[0] < len(images)
    assert min(calls) < 0
