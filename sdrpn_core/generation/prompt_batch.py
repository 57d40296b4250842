"""Prompts of different lengths as one batch, padded on the left.

Shape legend: N batch, L padded length, d hidden size, K deepstack layers, C image cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdrpn_core.attention.masks import ColumnMasks
from sdrpn_core.decoding.decoder import DecoderInput
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures, Prompt


@dataclass(frozen=True)
class PromptBatch:
    """Left-padded prompts."""

    embeds: Tensor
    """(N, L, d)"""
    deepstack: Tensor
    """(K, N, L, d)"""
    key_mask: Tensor
    """(N, L) bool, True = token."""
    position_ids: Tensor
    """(..., N, L)"""
    image_numbers: Tensor
    """(N, L) as of ``Prompt``."""
    offsets: tuple[int, ...]
    """Padding columns before each prompt."""
    token_ids: tuple[tuple[int, ...], ...] = ()
    """Tokens that each whole prompt holds; parts of prompts do not say."""

    @property
    def masks(self) -> ColumnMasks:
        """What the columns see of each other; that some are padding is known without the device."""
        return ColumnMasks(self.image_numbers, self.key_mask, is_full=not any(self.offsets))

    def as_input(self) -> DecoderInput:
        """Input of the first layer, with nothing before the prompts."""
        return DecoderInput(self.embeds, self.masks, self.position_ids, self.deepstack)


def embedded(
    adapter: ModelAdapter, questions: Sequence[str], images: Sequence[ImageFeatures]
) -> list[Prompt]:
    """Prompts of one question about one image each."""
    pairs = zip(questions, images, strict=True)
    return [adapter.embed_prompt(question, [image]) for question, image in pairs]


def pad_left(prompts: Sequence[Prompt]) -> PromptBatch:
    """Stack prompts of different lengths, padding on the left."""
    length = max(prompt.embeds.shape[0] for prompt in prompts)
    offsets = tuple(length - prompt.embeds.shape[0] for prompt in prompts)
    columns = torch.arange(length, device=prompts[0].embeds.device)
    return PromptBatch(
        embeds=torch.stack([_pad_rows(p.embeds, length) for p in prompts]),
        deepstack=torch.stack([_pad_rows(p.deepstack, length) for p in prompts], dim=1),
        key_mask=torch.stack([columns >= offset for offset in offsets]),
        position_ids=torch.stack([_pad(p.position_ids, length) for p in prompts], dim=-2),
        image_numbers=torch.stack([_pad(p.image_numbers, length) for p in prompts]),
        offsets=offsets,
        token_ids=tuple(prompt.token_ids for prompt in prompts),
    )


def _pad(values: Tensor, length: int) -> Tensor:
    """Zeros before ``values`` along the last axis, up to ``length``."""
    num_blank = length - values.shape[-1]
    return torch.nn.functional.pad(values, (num_blank, 0)) if num_blank else values


def _pad_rows(values: Tensor, length: int) -> Tensor:
    """Zero rows before (..., L, d), up to ``length`` rows."""
    num_blank = length - values.shape[-2]
    return torch.nn.functional.pad(values, (0, 0, num_blank, 0)) if num_blank else values


def last_position(position_ids: Tensor) -> Tensor:
    """(..., N, L) -> (N,) largest position of each prompt, over all rotary axes."""
    largest = position_ids.amax(dim=-1)
    return largest if largest.ndim == 1 else largest.flatten(0, -2).amax(dim=0)


def image_columns(prompts: Sequence[Prompt], offsets: Sequence[int]) -> Tensor:
    """(N, C) key columns of each padded prompt's image tokens, those of its crops left out.

    Grids may differ within a batch: shorter rows repeat their last column, and readers cut them
    to their own number of cells.
    """
    rows = [
        prompt.image_columns() + offset for prompt, offset in zip(prompts, offsets, strict=True)
    ]
    longest = max(row.shape[0] for row in rows)
    return torch.stack([torch.cat([row, row[-1:].expand(longest - row.shape[0])]) for row in rows])
