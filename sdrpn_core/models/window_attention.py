"""Attention of vision towers that look at an image in windows: windows of one length in one call.

The stock towers run a kernel for every window of every layer, hundreds of launches for a picture,
which a GPU spends waiting. Each window still attends to itself alone, by the same kernel, so the
features are the same.

Shape legend: W windows, L patches of a window, S patches of all windows, H heads, D head size.
"""

from collections import defaultdict
from collections.abc import MutableMapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, PreTrainedModel

# Towers hand over where windows end, rather than windows one by one, to kernels of this name.
NAME = "sdrpn_flash_windows"

_WINDOWS: MutableMapping[Tensor, tuple[Tensor, ...]] = WeakIdKeyDictionary()
"""By the bounds that the layers of one pass are given; gone with them."""


def use_joint_windows(tower: PreTrainedModel) -> None:
    """Let a tower of transformers attend to its windows jointly."""
    # Not ``set_attn_implementation``, which takes the name for a package that is to be loaded.
    tower.config._attn_implementation = NAME


def window_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention of every patch to the patches of its window; arguments as transformers gives them.

    Args:
        module: the attention layer.
        query: (1, H, S, D), windows one after the other.
        key: as the query.
        value: as the query.
        attention_mask: None.
        scaling: factor on the dot products.
        cu_seq_lens_q: (W + 1,) where windows begin, and S; None for one window.

    Returns:
        (1, S, H, D), and no attention weights.
    """
    del module, attention_mask
    tensors = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    if cu_seq_lens_q is None:
        return _attend([tensor[None] for tensor in tensors], scaling), None
    windows_by_length = _windows_by_length(cu_seq_lens_q)
    if len(windows_by_length) == 1:
        (patches,) = windows_by_length
        windows = [tensor.reshape(*patches.shape, *tensor.shape[1:]) for tensor in tensors]
        return _attend(windows, scaling).flatten(0, 1)[None], None
    output = torch.empty_like(tensors[0])
    for patches in windows_by_length:
        output[patches] = _attend([tensor[patches] for tensor in tensors], scaling)
    return output[None], None


def _windows_by_length(bounds: Tensor) -> tuple[Tensor, ...]:
    """(W, L) patches of the windows of each length; bounds are asked for once, not by each layer.

    To ask waits for the device.
    """
    known = _WINDOWS.get(bounds)
    if known is None:
        starts: dict[int, list[int]] = defaultdict(list)
        for start, end in pairwise(bounds.tolist()):
            starts[end - start].append(start)
        device = bounds.device
        known = _WINDOWS[bounds] = tuple(
            torch.tensor(own, device=device)[:, None] + torch.arange(length, device=device)
            for length, own in starts.items()
        )
    return known


def _attend(windows: list[Tensor], scaling: float) -> Tensor:
    """Query, key and value, each (W, L, H, D) -> (W, L, H, D)."""
    query, key, value = (tensor.transpose(1, 2) for tensor in windows)
    return scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2)


AttentionInterface.register(NAME, window_attention)
