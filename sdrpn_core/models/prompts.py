"""What the decoder gets: features of images, and prompts with their embeddings in place.

Shape legend: L sequence, d hidden size, C image cells (h * w), K deepstack layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sdrpn_core.geometry import GridShape, Letterbox


@dataclass(frozen=True)
class ImageFeatures:
    """One image as the decoder sees it."""

    tokens: Tensor
    """(C, d) projected features, row-major over the grid."""
    grid: GridShape
    letterbox: Letterbox
    deepstack: tuple[Tensor, ...] = ()
    """K times (C, d): added at the image's columns to the output of decoder layers 0 .. K-1."""


@dataclass(frozen=True)
class Prompt:
    """One embedded prompt, not padded."""

    embeds: Tensor
    """(L, d)"""
    deepstack: Tensor
    """(K, L, d), zero outside images; K is 0 for families without deepstack features."""
    position_ids: Tensor
    """(..., L); leading axes for multi-axis rotary embeddings."""
    image_starts: tuple[int, ...]
    """First column of each image's tokens."""
    image_grids: tuple[GridShape, ...]

    @property
    def prefix_length(self) -> int:
        """Columns up to and including the first image: the part shared by both stages."""
        return self.image_starts[0] + self.image_grids[0].num_cells

    @property
    def prefix(self) -> "Prompt":
        """The part up to the end of the first image, without word of where its images are."""
        return self._columns(slice(None, self.prefix_length))

    @property
    def suffix(self) -> "Prompt":
        """The part after the first image, without word of where its images are."""
        return self._columns(slice(self.prefix_length, None))

    def image_columns(self, image: int = 0) -> Tensor:
        """(C,) columns of one image's tokens."""
        start = self.image_starts[image]
        return torch.arange(
            start, start + self.image_grids[image].num_cells, device=self.embeds.device
        )

    def _columns(self, columns: slice) -> "Prompt":
        return Prompt(
            embeds=self.embeds[columns],
            deepstack=self.deepstack[:, columns],
            position_ids=self.position_ids[..., columns],
            image_starts=(),
            image_grids=(),
        )
