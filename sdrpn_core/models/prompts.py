"""What the decoder gets: features of images, and prompts with their embeddings in place.

Shape legend: L sequence, W sequence with all tokens of all images, d hidden size, C image cells
(h * w), T tokens of an image (cells and breaks), K deepstack layers.
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
    """One image as the decoder sees it: its cells, and breaks in families that have such."""

    tokens: Tensor
    """(T, d) in the decoder's order: projected features of the cells, row-major over the grid, and
    the breaks between and behind them."""
    grid: GridShape
    letterbox: Letterbox
    deepstack: tuple[Tensor, ...] = ()
    """K times (T, d): added at the image's columns to the output of decoder layers 0 .. K-1."""
    breaks: NDArray[np.bool_] | None = None
    """(T,) tokens that stand for no cell but end a row of them, or the image; None for none."""
    break_ids: tuple[int, ...] = ()
    """Tokens of the vocabulary that the breaks are, each once; none where they are learnt apart."""
    shown: NDArray[np.bool_] | None = None
    """(h, w) cells whose tokens the decoder gets; None for all. Breaks are always among them."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the decoder gets."""
        given = self.given_mask
        return len(self.tokens) if given is None else int(np.count_nonzero(given))

    @property
    def given_mask(self) -> NDArray[np.bool_] | None:
        """(T,) tokens that the decoder gets; None for all."""
        if self.shown is None:
            return None
        if self.breaks is None:
            return self.shown.ravel()
        given = self.breaks.copy()
        given[~self.breaks] = self.shown.ravel()
        return given

    @property
    def given_breaks(self) -> NDArray[np.bool_] | None:
        """Which of the tokens that the decoder gets are breaks; None for none."""
        given = self.given_mask
        return self.breaks if self.breaks is None or given is None else self.breaks[given]

    def given_tokens(self) -> Tensor | slice:
        """Index of the tokens that the decoder gets, into ``tokens`` and ``deepstack``."""
        given = self.given_mask
        if given is None:
            return slice(None)
        return torch.from_numpy(np.flatnonzero(given)).to(self.tokens.device)

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
    image_breaks: tuple[NDArray[np.bool_] | None, ...]
    """Which tokens of each image are breaks; None where all are cells."""
    image_lengths: tuple[int, ...]
    """Tokens of each image, breaks among them; fewer where not all cells are shown."""
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
        """(C,) columns of one image's cells, those that the decoder gets."""
        start, breaks = self.image_starts[image], self.image_breaks[image]
        if breaks is None:
            return torch.arange(start, start + self.image_lengths[image], device=self.embeds.device)
        return torch.from_numpy(start + np.flatnonzero(~breaks)).to(self.embeds.device)

    def _columns(self, columns: slice) -> "Prompt":
        return Prompt(
            embeds=self.embeds[columns],
            deepstack=self.deepstack[:, columns],
            position_ids=self.position_ids[..., columns],
            image_numbers=self.image_numbers[columns],
            image_starts=(),
            image_grids=(),
            image_breaks=(),
            image_lengths=(),
        )


@dataclass(frozen=True)
class PromptLayout:
    """Where a prompt's images lie."""

    ids: Tensor
    """(W,) on the host, with the image token for every token of every image: positions are counted
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
    lengths[places] = [len(image.tokens) for image in images]
    firsts = (np.cumsum(lengths) - lengths)[places]
    given_mask = np.ones(int(lengths.sum()), dtype=np.bool_)
    for first, image in zip(firsts, images, strict=True):
        if (own := image.given_mask) is not None:
            given_mask[first : first + len(own)] = own
    columns = np.flatnonzero(given_mask)
    return PromptLayout(
        ids=torch.from_numpy(np.repeat(tokens, lengths)),
        columns=torch.from_numpy(columns),
        starts=tuple(np.searchsorted(columns, firsts).tolist()),
    )
