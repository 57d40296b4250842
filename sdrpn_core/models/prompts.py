"""What the decoder gets: features of images, and prompts with their embeddings in place.

Shape legend: L sequence, W sequence with all cells of all images, d hidden size, C image cells
(h * w), K deepstack layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
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
    shown: NDArray[np.bool_] | None = None
    """(h, w) cells whose tokens the decoder gets; None for all."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the decoder gets."""
        return self.grid.num_cells if self.shown is None else int(np.count_nonzero(self.shown))

    def shown_cells(self) -> Tensor | slice:
        """Index of the cells whose tokens the decoder gets, into ``tokens`` and ``deepstack``."""
        if self.shown is None:
            return slice(None)
        return torch.from_numpy(np.flatnonzero(self.shown)).to(self.tokens.device)

    def showing(self, cells: NDArray[np.bool_]) -> Self:
        """The same image, of which the decoder gets some cells only.

        Args:
            cells: (h, w), at least one.

        Raises:
            ValueError: if it is of another shape, or shows nothing.
        """
        if cells.shape != self.grid or not cells.any():
            raise ValueError(
                f"of a grid of {tuple(self.grid)} at least one cell is to be shown, got "
                f"{np.count_nonzero(cells)} of {cells.shape}"
            )
        return replace(self, shown=None if cells.all() else cells)


@dataclass(frozen=True)
class Prompt:
    """One embedded prompt, not padded."""

    embeds: Tensor
    """(L, d)"""
    deepstack: Tensor
    """(K, L, d), zero outside images; K is 0 for families without deepstack features."""
    position_ids: Tensor
    """(..., L); leading axes for multi-axis rotary embeddings."""
    image_numbers: Tensor
    """(L,) which image, from 1, a column holds a token of; 0 for text."""
    image_starts: tuple[int, ...]
    """First column of each image's tokens."""
    image_grids: tuple[GridShape, ...]
    image_lengths: tuple[int, ...]
    """Tokens of each image: the cells of its grid, or fewer where not all are shown."""
    token_ids: tuple[int, ...] = ()
    """Every token that a whole prompt holds, once, rising; parts of a prompt do not say."""
    first_ids: tuple[int, ...] = ()
    """Tokens of a whole prompt before its first image, in order."""

    @property
    def prefix_length(self) -> int:
        """Columns up to and including the first image: the part shared by both stages."""
        return self.image_starts[0] + self.image_lengths[0]

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
        return torch.arange(start, start + self.image_lengths[image], device=self.embeds.device)

    def _columns(self, columns: slice) -> "Prompt":
        return Prompt(
            embeds=self.embeds[columns],
            deepstack=self.deepstack[:, columns],
            position_ids=self.position_ids[..., columns],
            image_numbers=self.image_numbers[columns],
            image_starts=(),
            image_grids=(),
            image_lengths=(),
        )


@dataclass(frozen=True)
class PromptLayout:
    """Where a prompt's images lie."""

    ids: Tensor
    """(W,) on the host, with the image token for every cell of every image: positions are counted
    over these."""
    columns: Tensor
    """(L,) indices of those that the decoder gets, rising."""
    starts: tuple[int, ...]
    """First of ``columns`` of each image."""


def lay_out(ids: Sequence[int], image_token: int, images: Sequence[ImageFeatures]) -> PromptLayout:
    """Make room for images.

    Args:
        ids: tokens of a prompt, with one placeholder for each image.
        image_token: the placeholder.
        images: in prompt order.
    """
    tokens = np.array(ids, dtype=np.int64)
    places = np.flatnonzero(tokens == image_token)
    lengths = np.ones(len(tokens), dtype=np.int64)
    lengths[places] = [image.grid.num_cells for image in images]
    firsts = (np.cumsum(lengths) - lengths)[places]
    given_mask = np.ones(int(lengths.sum()), dtype=np.bool_)
    for first, image in zip(firsts, images, strict=True):
        if image.shown is not None:
            given_mask[first : first + image.grid.num_cells] = image.shown.ravel()
    columns = np.flatnonzero(given_mask)
    return PromptLayout(
        ids=torch.from_numpy(np.repeat(tokens, lengths)),
        columns=torch.from_numpy(columns),
        starts=tuple(np.searchsorted(columns, firsts).tolist()),
    )
