"""Positions of Qwen's prompts: counted here, as the stock model counts them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from data_contracts.profiles import ModelProfile
from sdrpn_core.geometry import GridShape
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.qwen2_5_vl import Qwen2_5VlAdapter
from tests.tiny_qwen import tiny_qwen2_5_vl, tiny_qwen2_vl, tiny_qwen3_5, tiny_qwen3_vl


@pytest.mark.parametrize("build", [tiny_qwen2_vl, tiny_qwen2_5_vl, tiny_qwen3_vl, tiny_qwen3_5])
def test_positions_are_counted_as_the_stock_model_does(
    build: Callable[[Path], ModelProfile], tmp_path: Path
) -> None:
    """Any number of images, of any shape, at the prompt's start and end too; its own function went
    from token to token while the GPU waited for the prompt."""
    adapter = load_adapter(build(tmp_path), device="cpu")
    assert isinstance(adapter, Qwen2_5VlAdapter)
    rng = np.random.default_rng(0)
    for num_images in (*range(4),) * 10:
        grids = [GridShape(*map(int, rng.integers(1, 12, 2))) for _ in range(num_images)]
        ids = _prompt(adapter.image_token_id, grids, rng)
        wanted = _stock_positions(adapter, ids, grids)
        with patch.object(type(adapter.model.model), "get_rope_index", side_effect=AssertionError):
            assert torch.equal(adapter.position_ids(ids, grids), wanted)


def _prompt(image_token: int, grids: list[GridShape], rng: np.random.Generator) -> Tensor:
    """Images with at least one word between two, and perhaps none around them."""
    words = [0] * int(rng.integers(not grids, 4))
    for number, grid in enumerate(grids):
        is_last = number == len(grids) - 1
        words += [image_token] * grid.num_cells + [0] * int(rng.integers(not is_last, 4))
    return torch.tensor(words)


def _stock_positions(adapter: Any, ids: Tensor, grids: list[GridShape]) -> Tensor:
    merge = adapter.merge_size
    patches = torch.tensor([[1, grid.height * merge, grid.width * merge] for grid in grids])
    positions: Tensor = adapter.model.model.get_rope_index(
        ids[None],
        mm_token_type_ids=(ids == adapter.image_token_id).int()[None],
        image_grid_thw=patches if grids else None,
    )[0]
    return positions[:, 0]
