"""Attention read-out: softmax rows of chosen queries, layers and heads, beside the fast kernel.

The kernel computes the output as ever; the recorder recomputes only the rows that are asked for, in
float32, from the very queries and keys that the kernel got. No (queries x keys) matrix of the whole
sequence is ever formed. A recorder is passed per call, so the model itself holds no state.

Shape legend: N batch, H heads, h chosen heads, S sequence, Q recorded queries, D head size,
C image cells.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sdrpn_core.attention.flash_attention import CausalKeys, flash_attention

ATTENTION_NAME = "sdrpn_sdpa"
"""Name under which the recording attention is registered with transformers."""

_ROWS_AT_A_TIME = 16
"""Queries whose rows over all keys are in memory together."""


@dataclass
class AttentionRecorder:
    """Accumulates weighted attention rows from chosen queries to image cells.

    Attributes:
        heads: layer -> heads to record (None for all heads of that layer).
        columns_NC: positions of each sample's image tokens among the keys.
        rows_NQ: positions of the recorded queries in the current forward pass.
        weights_NQ: weight of each recorded query; 0 for padding and finished rows.
    """

    heads: Mapping[int, tuple[int, ...] | None]
    columns_NC: Tensor
    rows_NQ: Tensor
    weights_NQ: Tensor
    sums: dict[int, Tensor] = field(default_factory=dict)
    """Layer -> (N, h, C) weighted sum of rows so far."""
    total_weight_N: Tensor | None = None
    _head_indices: dict[int, Tensor] = field(default_factory=dict, init=False)

    @classmethod
    def of_last_row(
        cls, heads: Mapping[int, tuple[int, ...] | None], columns_NC: Tensor, num_rows: int
    ) -> Self:
        """One that reads the last of ``num_rows`` queries of every sample."""
        rows_NQ = torch.full_like(columns_NC[:, :1], num_rows - 1)
        return cls(heads, columns_NC, rows_NQ, torch.ones_like(rows_NQ, dtype=torch.float32))

    def aim(self, rows_NQ: Tensor, weights_NQ: Tensor) -> None:
        """Choose the queries of the next forward pass."""
        self.rows_NQ = rows_NQ
        self.weights_NQ = weights_NQ

    def count(self) -> None:
        """Add the current weights to the total; call once per forward pass."""
        weight_N = self.weights_NQ.sum(dim=1)
        self.total_weight_N = (
            weight_N
            if self.total_weight_N is None
            else self.total_weight_N + weight_N.to(self.total_weight_N.device)
        )

    def record(
        self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float
    ) -> None:
        """Add this layer's rows; does nothing for layers that were not asked for.

        Args:
            layer: index of the decoder layer.
            query: (N, H, Sq, D), rotary applied.
            key: (N, Hkv, Skv, D), cache included, grouped heads not repeated.
            mask: None (causal) or bool (N or 1, 1, Sq, Skv), True = keep.
            scaling: factor on the dot products.
        """
        if layer not in self.heads:
            return
        image_rows = self._image_rows(layer, query, key, mask, scaling, self.rows_NQ)
        weights_NQ = self.weights_NQ.to(image_rows.device)
        weighted = (image_rows * weights_NQ[:, None, :, None]).sum(dim=2)
        self.sums[layer] = self.sums[layer] + weighted if layer in self.sums else weighted

    def adjust(self, layer: int, output: Tensor, value: Tensor) -> Tensor:
        """What a layer's attention passes on; a recorder may put a handle for gradients on it.

        Args:
            layer: index of the decoder layer.
            output: (N, Sq, H, D) attention output, before the output projection.
            value: (N, Hkv, Skv, D), grouped heads not repeated.
        """
        del layer, value
        return output

    def _image_rows(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scaling: float,
        rows_NQ: Tensor,
    ) -> Tensor:
        """(N, h, Q, C) rows of these queries at the image's columns."""
        # Layers may lie on different devices when a model is spread over several.
        device = query.device
        heads = self._chosen_heads(layer, query.shape[1], device)
        rows = attention_rows(query, key, mask, scaling, heads, rows_NQ.to(device))
        index = self.columns_NC.to(device)[:, None, None, :].expand(*rows.shape[:3], -1)
        return rows.gather(3, index)

    def _chosen_heads(self, layer: int, num_heads: int, device: torch.device) -> Tensor:
        """(h,) made once: indices that come from the host are waited for, in every step."""
        if layer not in self._head_indices:
            chosen = self.heads[layer]
            heads = range(num_heads) if chosen is None else chosen
            self._head_indices[layer] = torch.tensor(list(heads), device=device)
        return self._head_indices[layer]

    def mean(self) -> dict[int, Tensor]:
        """Layer -> (N, h, C) mean over recorded queries; zero for samples without any."""
        if self.total_weight_N is None:
            return {}
        weight = self.total_weight_N.clamp_min(1e-12)[:, None, None]
        return {layer: total.to(weight.device) / weight for layer, total in self.sums.items()}


@dataclass
class GroupedAttentionRecorder(AttentionRecorder):
    """Several weighted sums of rows at once, from one forward pass over many queries.

    ``sums`` holds (N, h, G, C) per layer: group g of sample n is the sum of its rows weighted by
    ``group_weights_NGQ[n, g]``. Rows are made a few at a time, because a conversation may have
    hundreds of them.
    """

    group_weights_NGQ: Tensor = field(kw_only=True)

    def record(
        self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float
    ) -> None:
        """Set this layer's sums; does nothing for layers that were not asked for."""
        if layer not in self.heads:
            return
        parts = [
            slice(start, start + _ROWS_AT_A_TIME)
            for start in range(0, self.rows_NQ.shape[1], _ROWS_AT_A_TIME)
        ]
        weights_NGQ = self.group_weights_NGQ.to(query.device)
        sums = [
            torch.einsum(
                "nhqc,ngq->nhgc",
                self._image_rows(layer, query, key, mask, scaling, self.rows_NQ[:, part]),
                weights_NGQ[:, :, part],
            )
            for part in parts
        ]
        self.sums[layer] = torch.stack(sums).sum(dim=0).to(self.columns_NC.device)


def attention_rows(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float,
    heads: Tensor,
    rows_NQ: Tensor,
) -> Tensor:
    """Softmax attention of chosen heads and queries over all keys, in float32.

    Args:
        query: (N, H, Sq, D).
        key: (N, Hkv, Skv, D); H must be a multiple of Hkv.
        mask: None for causal, else bool (N or 1, 1, Sq, Skv), True = keep.
        scaling: factor on the dot products.
        heads: (h,) chosen query heads, on the queries' device.
        rows_NQ: positions of the queries in 0..Sq-1.

    Returns:
        (N, h, Q, Skv), each row summing to 1.
    """
    group_size = query.shape[1] // key.shape[1]
    key_hd = key[:, heads // group_size].float()
    query_hd = query[:, heads]
    index = rows_NQ[:, None, :, None].expand(-1, len(heads), -1, query.shape[3])
    logits = query_hd.gather(2, index).float() @ key_hd.transpose(2, 3) * scaling
    num_queries, num_keys = query.shape[2], key.shape[2]
    if mask is None:
        keys = torch.arange(num_keys, device=query.device)
        keep = keys <= (rows_NQ + (num_keys - num_queries))[:, None, :, None]
    else:
        mask_index = rows_NQ[:, None, :, None].expand(-1, 1, -1, num_keys)
        keep = mask.expand(rows_NQ.shape[0], -1, -1, -1).gather(2, mask_index)
    return logits.masked_fill(~keep, float("-inf")).softmax(dim=-1)


def _recording_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    recorder: AttentionRecorder | None = None,
    flash_keys: CausalKeys | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    if softcap is not None:  # older sdpa of transformers leaves the cap out without a word
        raise ValueError("its attention logits have a cap")
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    if recorder is not None:
        recorder.record(int(module.layer_idx), query, key, attention_mask, factor)  # type: ignore[arg-type]
    if flash_keys is not None:
        output = flash_attention(query, key, value, flash_keys, factor)
    else:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if recorder is not None:
        output = recorder.adjust(int(module.layer_idx), output, value)  # type: ignore[arg-type]
    return output, None


# The mask function must be registered too: without it, padded batches silently get no mask.
AttentionInterface.register(ATTENTION_NAME, _recording_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
