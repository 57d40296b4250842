"""State between the prompt and the answer, and the steps by which decoding goes on from it.

Shape legend: N batch, L padded length.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers import Cache


@dataclass(frozen=True)
class LayerSpan:
    """Neighbouring decoder layers, ``first`` to ``last - 1``, that see the same columns."""

    first: int
    last: int
    key_mask: Tensor
    """(N, L) bool, True = token."""


@dataclass(frozen=True)
class Decoding:
    """Everything before the first new token. Decoding uses it up: the cache takes in the answer."""

    logits: Tensor
    """(N, vocabulary) for the first new token."""
    cache: Cache
    spans: tuple[LayerSpan, ...]
    """All layers, in order."""
    next_position: Tensor
    """(N,) position of the first new token."""
    held: Tensor | None = None
    """(N, vocabulary) True for tokens that the prompt holds, on the host; None for models that may
    repeat them without a penalty."""

    def rows_finite(self) -> list[bool]:
        """Whether each row's numbers are, without which no answer means anything."""
        largest = self.logits.amax(dim=-1)  # NaN where any is; tokens that are barred have -inf
        return largest.isfinite().tolist()


class Step(Protocol):
    """Runs tokens through the decoder, one of every row at a time."""

    def next_logits(self, tokens: Tensor) -> Tensor:
        """(N,) tokens of a step -> (N, vocabulary) logits of the next, valid until the next call.

        Steps come in order, the first with the tokens chosen by ``Decoding.logits``.
        """
