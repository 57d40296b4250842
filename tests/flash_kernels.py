"""What flash attention computes, by sdpa, prompt by prompt: it has no kernel for a CPU."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def dense(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """(N, S, H, D) each -> (N, Sq, H, D); causal, the last query sees the last key."""
    num_queries, num_keys = query.shape[1], key.shape[1]
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    parts = (part.transpose(1, 2) for part in (query, key, value))
    return scaled_dot_product_attention(
        *parts, attn_mask=mask, scale=scaling, enable_gqa=True
    ).transpose(1, 2)


def packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor | None,
    key_starts: Tensor | None,
    num_queries: int,
    num_keys: int,
    scaling: float,
) -> Tensor:
    """As the operation of torch: (T, H, D), or ``dense`` without starts."""
    if query_starts is None or key_starts is None:
        assert (num_queries, num_keys) == (query.shape[1], key.shape[1])
        return dense(query, key, value, scaling)
    assert query_starts.dtype == key_starts.dtype == torch.int32
    own, others = (starts.diff().tolist() for starts in (query_starts, key_starts))
    assert (num_queries, num_keys) == (max(own), max(others))
    prompts = zip(query.split(own), key.split(others), value.split(others), strict=True)
    return torch.cat([dense(*(part[None] for part in parts), scaling)[0] for parts in prompts])
