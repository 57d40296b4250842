"""Tokens of images with a newline behind their cells, for the oracles of several families."""

from torch import Tensor

from sdrpn_core.geometry import GridShape
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.square import square_canvas


def newline_ids(adapter: ModelAdapter, grid: GridShape) -> list[int]:
    """As the stock processors count: one more, for the newline."""
    return [adapter.image_token_id] * (grid.num_cells + 1)


def newline_cells(adapter: ModelAdapter, ids: Tensor) -> Tensor:
    """All image tokens but every last one of an image."""
    _, grid = square_canvas(adapter.model.config)
    is_image = ids == adapter.image_token_id
    return is_image & (is_image.cumsum(0) % (grid.num_cells + 1) != 0)
