"""Attention masks for padded batches, in the form the sdpa kernel takes.

Shape legend: N batch, L columns of a pass, S columns with those before them.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from sdrpn_core.attention.patterns import CAUSAL, AttentionPattern


class Masks(Protocol):
    """What the columns of one pass see in layers of each pattern."""

    def of(self, pattern: AttentionPattern) -> Tensor | None:
        """None where the kernel's own causal rule is exact, else (N, 1, L, S), True = keep."""

    @property
    def tokens(self) -> Tensor | None:
        """(N, L) bool, True where a column holds a token; None if all do. What a mask cannot tell
        layers that hand on a state."""


class ColumnMasks:
    """Masks over the columns that hold tokens, made once for each pattern.

    A column always sees itself, so that padding queries give finite numbers (a row without any key
    would be NaN and spread). Windows count tokens, not columns: padding takes no room in them, and
    no more do tokens that are out of view.
    """

    def __init__(
        self, image_numbers: Tensor, key_mask: Tensor | None = None, *, is_full: bool | None = None
    ) -> None:
        """Prepare.

        Args:
            image_numbers: (N, L) number of the image that a column holds a token of, 0 for none. An
                image must be there as a whole: its tokens may see each other.
            key_mask: (N, S) bool, True where a column holds a token; None if no columns come before
                these, and what padding there is follows all tokens.
            is_full: whether all columns hold tokens, where it is known; None to ask the device.
        """
        self._image_numbers = image_numbers
        self._num_columns = image_numbers.shape[1]
        self._key_mask = key_mask
        self._is_full = key_mask is None or is_full
        self._made: dict[AttentionPattern, Tensor | None] = {}

    @property
    def tokens(self) -> Tensor | None:
        """As of ``Masks``."""
        if self._key_mask is None or self._is_full:
            return None
        return self._key_mask[:, -self._num_columns :]

    def of(self, pattern: AttentionPattern) -> Tensor | None:
        """As of ``Masks``; may wait for the device."""
        effective = self._without_idle_rules(pattern)
        if effective not in self._made:
            self._made[effective] = self._mask(effective)
        return self._made[effective]

    @property
    def _num_keys(self) -> int:
        return self._num_columns if self._key_mask is None else self._key_mask.shape[1]

    def _without_idle_rules(self, pattern: AttentionPattern) -> AttentionPattern:
        """The pattern, less what changes nothing here."""
        window = pattern.window
        return AttentionPattern(
            window=None if window is None or window >= self._num_keys else window,
            whole_images=pattern.whole_images and self._num_columns > 1,
        )

    def _mask(self, pattern: AttentionPattern) -> Tensor | None:
        num_columns, num_keys = self._num_columns, self._num_keys
        if pattern == CAUSAL and num_columns in (1, num_keys) and self._all_are_tokens():
            return None
        key_mask = self._keys()
        keys = torch.arange(num_keys, device=key_mask.device)
        queries = keys[num_keys - num_columns :, None]
        keep = (keys <= queries)[None]
        if pattern.whole_images:
            keep = keep | functional.pad(self._same_image(), (num_keys - num_columns, 0))
        if pattern.window is not None:
            places = key_mask.cumsum(dim=1, dtype=torch.int32)
            distances = places[:, num_keys - num_columns :, None] - places[:, None, :]
            keep = keep & (distances < pattern.window)
        return ((keep & key_mask[:, None, :]) | (keys == queries))[:, None]

    def _all_are_tokens(self) -> bool:
        if self._is_full is None:
            assert self._key_mask is not None
            self._is_full = bool(self._key_mask.all())
        return self._is_full

    def _keys(self) -> Tensor:
        if self._key_mask is None:
            return torch.ones_like(self._image_numbers, dtype=torch.bool)
        return self._key_mask

    def _same_image(self) -> Tensor:
        """(N, L, L) whether two columns hold tokens of one image."""
        own, other = self._image_numbers[:, :, None], self._image_numbers[:, None, :]
        return (own == other) & (own > 0)
