"""One pass of columns through decoder layers, whatever kind each layer is of.

Shape legend: N rows, L columns, d hidden size, D head size.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor
from transformers import Cache

from sdrpn_core.attention.masks import Masks
from sdrpn_core.attention.patterns import pattern_of
from sdrpn_core.decoding.layer_arguments import cache_arguments
from sdrpn_core.decoding.part_names import state_mixer
from sdrpn_core.decoding.recurrent_layers import TokenColumns

Rotation = tuple[Tensor, Tensor]
"""(..., L, D) cosine and sine of rotary positions."""


class Rotations:
    """Rotary embeddings of some positions, made once; in some families kinds of layers differ."""

    def __init__(self, rotary_emb: Any, hidden: Tensor, position_ids: Tensor) -> None:
        """Prepare.

        Args:
            rotary_emb: the stock module.
            hidden: what they are for: gives device and precision.
            position_ids: (..., N, L).
        """
        self._rotary_emb = rotary_emb
        self._like = hidden.new_empty(0)
        self._position_ids = position_ids
        self._made: dict[str | None, Rotation | None] = {}

    def of(self, attention: Any) -> Rotation | None:
        """Those of a stock attention module, or of what was copied from one.

        None for a kind of layers that turn nothing and want none.
        """
        kind = layer_kind(attention) if hasattr(self._rotary_emb, "layer_types") else None
        if kind not in self._made:
            self._made[kind] = self._made_for(kind)
        return self._made[kind]

    def _made_for(self, kind: str | None) -> Rotation | None:
        if kind is not None and kind not in self._rotary_emb.rope_type:
            return None
        kinds = () if kind is None else (kind,)
        rotation: Rotation = self._rotary_emb(self._like, self._position_ids, *kinds)
        return rotation


def layer_kind(attention: Any) -> str | None:
    """The kind of layer that an attention module is of, or was copied from; None where all are
    alike."""
    if hasattr(attention, "layer_type"):
        kind: str | None = attention.layer_type
        return kind
    kinds = getattr(attention.config, "layer_types", None)
    return None if kinds is None else str(kinds[attention.layer_idx])


@dataclass(frozen=True)
class LayerPass:
    """What is the same for all layers of a pass."""

    masks: Masks
    position_ids: Tensor
    """(..., N, L)"""
    rotations: Rotations
    """Of ``position_ids``."""
    cache: Cache | None = None
    """What layers keep of earlier columns; extended in place."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What the recording attention is told besides."""

    def through(self, layer: Any, hidden: Tensor) -> Tensor:
        """(N, L, d) input of a stock layer -> its output."""
        if (mixer := state_mixer(layer)) is not None:
            rotation = self.rotations.of(mixer)
            return self._columns.run(layer, hidden, self.cache, rotation)
        output: Tensor = layer(
            hidden,
            attention_mask=self.masks.of(pattern_of(layer)),
            position_ids=self.position_ids,
            position_embeddings=self.rotations.of(layer.self_attn),
            **cache_arguments(layer, self.cache),
            **_kept_for_later_layers(layer),
            **self.extra,
        )
        return output

    @cached_property
    def _columns(self) -> TokenColumns:
        return TokenColumns(self.masks.tokens)


def _kept_for_later_layers(layer: Any) -> dict[str, Any]:
    """A place for keys and values that some layers of Gemma 4 put down for later ones.

    Some versions of transformers let the last layer of each kind do so even where no layer takes
    them. One that takes them is given none, and fails: models with such layers are refused.
    """
    if getattr(layer.self_attn, "store_full_length_kv", False):
        return {"shared_kv_states": {}}
    return {}
