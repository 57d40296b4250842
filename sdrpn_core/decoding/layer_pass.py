"""One pass of columns through decoder layers, whatever kind each layer is of.

Shape legend: N rows, L columns, d hidden size.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor
from transformers import Cache

from sdrpn_core.decoding.recurrent_layers import TokenColumns, is_recurrent

Rotation = tuple[Tensor, Tensor]
"""(..., L, D) cosine and sine of rotary positions."""


@dataclass(frozen=True)
class LayerPass:
    """What is the same for all layers of a pass."""

    mask: Tensor | None
    """As made by ``masks.attention_mask``."""
    position_ids: Tensor
    """(..., N, L)"""
    rotation: Rotation
    """Of ``position_ids``."""
    tokens: Tensor | None = None
    """As of ``DecoderInput``."""
    cache: Cache | None = None
    """What layers keep of earlier columns; extended in place."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What the recording attention is told besides."""

    def through(self, layer: Any, hidden: Tensor) -> Tensor:
        """(N, L, d) input of a stock layer -> its output."""
        if is_recurrent(layer):
            return self._columns.run(layer, hidden, self.cache, self.rotation)
        output: Tensor = layer(
            hidden,
            attention_mask=self.mask,
            position_ids=self.position_ids,
            past_key_values=self.cache,
            use_cache=self.cache is not None,
            position_embeddings=self.rotation,
            **self.extra,
        )
        return output

    @cached_property
    def _columns(self) -> TokenColumns:
        return TokenColumns(self.tokens)
