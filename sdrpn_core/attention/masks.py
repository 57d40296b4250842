"""Attention masks for padded batches, in the form the sdpa kernel takes."""

import torch
from torch import Tensor


def attention_mask(key_mask: Tensor, num_queries: int) -> Tensor | None:
    """Causal mask over the columns that hold tokens.

    Queries are the last ``num_queries`` columns. A column always sees itself, so that padding
    queries give finite numbers (a row without any key would be NaN and spread).

    Args:
        key_mask: (N, S) bool, True where a column holds a token.
        num_queries: number of query columns, at most S.

    Returns:
        None where the kernel's own causal rule is exact, else bool (N, 1, Sq, S), True = keep.
    """
    num_keys = key_mask.shape[1]
    if num_queries in (1, num_keys) and bool(key_mask.all()):
        return None
    keys = torch.arange(num_keys, device=key_mask.device)
    queries = keys[num_keys - num_queries :, None]
    keep = (keys <= queries) & key_mask[:, None, :]
    return (keep | (keys == queries))[:, None]
