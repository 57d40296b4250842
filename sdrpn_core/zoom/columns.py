"""Columns of a batch between the layers below the branch and those above it.

Shape legend: N rows, S columns, d hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from sdrpn_core.attention.masks import ColumnMasks
from sdrpn_core.decoding.decoder import DecoderInput


@dataclass(frozen=True)
class Columns:
    """Columns that are about to go through layers B and up."""

    hidden: Tensor
    """(N, S, d) input of layer B."""
    key_mask: Tensor
    """(N, S) bool, with the columns before them; True where a column holds a token."""
    position_ids: Tensor
    """(..., N, S)"""
    image_numbers: Tensor
    """(N, S) as of ``Prompt``."""

    def of_rows(self, rows: Tensor) -> "Columns":
        """The columns of some rows, repeats allowed."""
        return Columns(
            self.hidden[rows],
            self.key_mask[rows],
            self.position_ids[..., rows, :],
            self.image_numbers[rows],
        )

    def followed_by(self, later: "Columns") -> "Columns":
        """Both as one pass; ``later`` must not have other columns before it than these."""
        own_mask = later.key_mask[:, -later.hidden.shape[1] :]
        return Columns(
            hidden=torch.cat([self.hidden, later.hidden], dim=1),
            key_mask=torch.cat([self.key_mask, own_mask], dim=1),
            position_ids=torch.cat([self.position_ids, later.position_ids], dim=-1),
            image_numbers=torch.cat([self.image_numbers, later.image_numbers], dim=1),
        )

    def as_input(self) -> DecoderInput:
        """Input of layer B; no deepstack, as the adapter refuses a branch before its last layer."""
        return DecoderInput(self.hidden, self.masks, self.position_ids)

    @property
    def masks(self) -> ColumnMasks:
        """What these columns see of each other, and of the columns before them."""
        return ColumnMasks(self.image_numbers, self.key_mask)


@dataclass(frozen=True)
class CachedColumns(Columns):
    """Columns with what layers 0 .. B-1 keep of them."""

    cache: Cache
    """Keys and values of those layers, of these columns and the ones before them."""
