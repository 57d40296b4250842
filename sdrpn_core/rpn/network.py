"""Region proposal network: trained copies of decoder layers that branch off the frozen model.

The network holds only parameters that reach its logits: the last copied layer is reduced to its
input norm and its query and key projections. All that it holds is a deep copy, so training it never
touches the frozen model, and later changes to the model's attention settings never reach it. What
it does not hold are the experts of a mixture (``shared_experts.py``): it calls the model's.

Shape legend: N batch, L sequence, d hidden size, C image cells, H query heads, K key heads,
D head size.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import Cache

from data_contracts.profiles import RpnShape
from sdrpn_core.attention.masks import Masks
from sdrpn_core.decoding.layer_pass import LayerPass, Rotation, Rotations, layer_kind
from sdrpn_core.decoding.part_names import final_norm, head_norm, input_norm
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.rpn.copied_layers import (
    Rotary,
    check_copyable,
    check_in_memory,
    rotary_of,
    scoring_attention,
)
from sdrpn_core.rpn.shared_experts import SharedPart, copied_layer


class RegionProposalNetwork(nn.Module):
    """Scores every image cell by how much the last prompt token looks for it."""

    def __init__(
        self,
        layers: Sequence[nn.Module],
        scoring: "ScoringHead",
        rotary_emb: nn.Module,
        branch_layer: int,
    ) -> None:
        super().__init__()
        self.branch_layer = branch_layer
        self.layers = nn.ModuleList(layers)
        self.scoring = scoring
        self.rotary_emb = rotary_emb

    @classmethod
    def from_adapter(cls, adapter: ModelAdapter, shape: RpnShape) -> Self:
        """Copy layers B to B+R-1 of the model, ready to train.

        Raises:
            ModelError: if the model has too few layers, they are laid out in an unknown way or
                quantized, the branch comes before the last deepstack layer, or the last copied
                layer has no heads.
        """
        check_copyable(adapter, shape)
        check_in_memory(adapter.decoder.layers, shape)
        return cls.copied_from(adapter.decoder.text_model, shape)

    @classmethod
    def copied_from(cls, text_model: Any, shape: RpnShape) -> Self:
        """Copy layers of a stock text model.

        Raises:
            ModelError: if it has too few, or they are laid out in an unknown way.
        """
        first, last = shape.branch_layer, shape.last_layer
        stack = text_model.layers
        attention = scoring_attention(stack, shape)
        scoring = ScoringHead(
            attention,
            input_norm=deepcopy(input_norm(stack[last])),
            final_norm=deepcopy(final_norm(text_model)) if shape.final_norm else None,
            rotary=rotary_of(attention) if shape.rotary_scores else None,
        )
        # A model spread over several devices may keep its final norm on another one.
        scoring.to(attention.q_proj.weight.device)
        layers = [copied_layer(layer) for layer in stack[first:last]]
        network = cls(layers, scoring, deepcopy(text_model.rotary_emb), first)
        # Evaluation mode for good: dropout would make a run depend on a random state.
        return network.requires_grad_(True).eval()

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters."""
        return self.scoring.q_proj.weight.dtype

    @property
    def shares_experts(self) -> bool:
        """Whether it calls experts of the frozen model, and is nothing without them."""
        return any(isinstance(module, SharedPart) for module in self.modules())

    def set_precision(self, dtype: torch.dtype) -> Self:
        """Convert the parameters in place; rotary frequencies keep their float32.

        ``Module.to`` would round the frequencies too, and turn far columns by a wrong angle.
        """
        for part in (self.layers, self.scoring):
            part.to(dtype)
        return self

    def forward(
        self,
        hidden: Tensor,
        *,
        masks: Masks,
        position_ids: Tensor,
        query_columns: Tensor,
        image_columns: Tensor,
    ) -> Tensor:
        """Score image cells.

        Args:
            hidden: (N, L, d) input of layer B; padding may be on either side, or, where copied
                layers hand on a state, on the right.
            masks: what the columns see. Padding on the right may be left out of account, as no
                scored column can see it.
            position_ids: (..., N, L).
            query_columns: (N,) column of the last prompt token.
            image_columns: (N, C) columns of the image tokens.

        Returns:
            (N, C) RoI logits in float32.
        """
        encoded = self.encode(hidden, masks=masks, position_ids=position_ids)
        keys = self.cell_keys(encoded, position_ids, image_columns)
        return self.score(encoded, position_ids, query_columns, keys)

    def encode(
        self,
        hidden: Tensor,
        *,
        masks: Masks,
        position_ids: Tensor,
        cache: Cache | None = None,
    ) -> Tensor:
        """Run the layers that are copied whole.

        Args:
            hidden: (N, L, d) input of layer B.
            masks: what the columns see.
            position_ids: (..., N, L).
            cache: keys and values of earlier columns; extended in place.

        Returns:
            (N, L, d) input of the scoring head.
        """
        hidden = hidden.to(self.dtype)
        rotations = Rotations(self.rotary_emb, hidden, position_ids)
        columns = LayerPass(masks, position_ids, rotations, cache)
        for layer in self.layers:
            hidden = columns.through(layer, hidden)
        return hidden

    def cell_keys(self, encoded: Tensor, position_ids: Tensor, image_columns: Tensor) -> Tensor:
        """Keys of the image cells.

        Args:
            encoded: (N, L, d) from ``encode``.
            position_ids: (..., N, L).
            image_columns: (N, C).

        Returns:
            (N, K, C, D)
        """
        return self.scoring.keys(*self._at(encoded, position_ids, image_columns))

    def score(
        self, encoded: Tensor, position_ids: Tensor, query_columns: Tensor, keys: Tensor
    ) -> Tensor:
        """RoI logits from the query's states and the cells' keys.

        Args:
            encoded: (N, L, d) from ``encode``.
            position_ids: (..., N, L).
            query_columns: (N,) column of the last prompt token.
            keys: (N, K, C, D) from ``cell_keys``.

        Returns:
            (N, C) float32.
        """
        query = self.scoring.query(*self._at(encoded, position_ids, query_columns[:, None]))
        return self.scoring.mean_dot_product(query, keys)

    def _at(
        self, encoded: Tensor, position_ids: Tensor, columns: Tensor
    ) -> tuple[Tensor, Rotation | None]:
        """States of some columns, and their rotation if scoring turns them."""
        columns = columns.to(encoded.device)
        states = _take_columns(encoded, columns)
        if self.scoring.rotary is None:
            return states, None
        rotation = Rotations(self.rotary_emb, encoded, position_ids).of(self.scoring)
        assert rotation is not None  # as of every layer that turns heads
        cos, sin = (
            _take_columns(part.to(encoded.device).expand(len(encoded), -1, -1), columns)
            for part in rotation
        )
        return states, (cos, sin)


class ScoringHead(nn.Module):
    """Mean over heads of the scaled dot product of one query with every key."""

    def __init__(
        self,
        attention: Any,
        input_norm: nn.Module,
        final_norm: nn.Module | None,
        rotary: Rotary | None,
    ) -> None:
        super().__init__()
        self.final_norm = final_norm
        self.input_norm = input_norm
        self.q_proj = _query_projection(attention)
        self.k_proj: nn.Linear = deepcopy(attention.k_proj)
        self.q_norm = deepcopy(head_norm(attention, "q"))
        self.k_norm = deepcopy(head_norm(attention, "k"))
        self.head_dim = int(attention.head_dim)
        self.scaling = float(attention.scaling)
        self.layer_type = layer_kind(attention)
        self.rotary = rotary

    def query(self, states: Tensor, rotation: Rotation | None) -> Tensor:
        """(N, 1, d) states of the query and their (N, 1, D) rotation -> (N, H, 1, D)."""
        return self._projected(states, self.q_proj, self.q_norm, rotation)

    def keys(self, states: Tensor, rotation: Rotation | None) -> Tensor:
        """(N, C, d) states of the cells and their (N, C, D) rotation -> (N, K, C, D)."""
        return self._projected(states, self.k_proj, self.k_norm, rotation)

    def _projected(
        self,
        states: Tensor,
        projection: nn.Linear,
        head_norm: nn.Module | None,
        rotation: Rotation | None,
    ) -> Tensor:
        if self.final_norm is not None:
            states = self.final_norm(states)
        heads = self._heads(projection(self.input_norm(states)), head_norm)
        if self.rotary is not None:
            assert rotation is not None
            heads = self.rotary(heads, *rotation)
        return heads

    def _heads(self, projected: Tensor, norm: nn.Module | None) -> Tensor:
        """(N, L, heads * D) -> (N, heads, L, D)."""
        heads = projected.view(*projected.shape[:-1], -1, self.head_dim)
        if norm is not None:
            heads = norm(heads)
        return heads.transpose(1, 2)

    def mean_dot_product(self, query: Tensor, keys: Tensor) -> Tensor:
        """(N, H, 1, D) and (N, K, C, D) -> (N, C) float32.

        The mean over heads is linear in q, so the queries of a key head's group are summed before
        the product: keys are never repeated. Half precision would lose the small differences
        between cells that the loss is about, hence float32 also under autocast.
        """
        with torch.autocast(query.device.type, enabled=False):
            groups = (
                query.float().reshape(len(query), keys.shape[1], -1, 1, self.head_dim).sum(dim=2)
            )
            products = (keys.float() @ groups.transpose(2, 3)).squeeze(-1)
            return products.sum(dim=1) * (self.scaling / query.shape[1])


def _take_columns(values: Tensor, columns: Tensor) -> Tensor:
    """(N, L, d) and (N, C) -> (N, C, d)."""
    return values.gather(1, columns[..., None].expand(-1, -1, values.shape[-1]))


def _query_projection(attention: Any) -> nn.Linear:
    """Copy of the query projection, without the gates that some families make beside each query.

    Qwen3.5's gives every head a query and then as many gates of its output.
    """
    projection: nn.Linear = deepcopy(attention.q_proj)
    output = getattr(attention, "o_proj", None)
    if output is None or projection.out_features != 2 * output.in_features:
        return projection
    projection.out_features = output.in_features
    for name, value in list(projection.named_parameters()):
        by_head = value.view(-1, 2, attention.head_dim, *value.shape[1:])
        setattr(projection, name, nn.Parameter(by_head[:, 0].flatten(0, 1).clone()))
    return projection
