"""Masks by their definition, for prompts of which some columns are out of view."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sdrpn_core.attention.patterns import AttentionPattern


@dataclass(frozen=True)
class PatternMasks:
    """What one prompt's columns see, by a loop over pairs of them."""

    image_numbers: Tensor
    """(L,)"""
    in_view: Tensor
    """(L,) bool: columns that others see; each sees itself."""

    @property
    def tokens(self) -> Tensor:
        """(1, L), for layers that no mask hides columns from."""
        return self.in_view[None]

    def of(self, pattern: AttentionPattern) -> Tensor:
        """(1, 1, L, L)"""
        length = len(self.in_view)
        numbers, in_view = self.image_numbers.tolist(), self.in_view.tolist()
        keep = torch.eye(length, dtype=torch.bool)
        for query in range(length):
            for key in (key for key in range(length) if in_view[key]):
                is_same_image = numbers[query] == numbers[key] > 0
                is_before = key <= query or (pattern.whole_images and is_same_image)
                num_tokens = sum(in_view[key + 1 : query + 1])
                is_near = pattern.window is None or num_tokens < pattern.window
                keep[query, key] |= is_before and is_near
        return keep[None, None]
