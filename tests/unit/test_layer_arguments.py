"""The cache goes to stock layers by the name that their version of transformers has for it."""

from typing import Any

import pytest
from torch import Tensor, nn
from transformers import DynamicCache

from sdrpn_core.decoding.layer_arguments import cache_arguments


class EarlierLayer(nn.Module):
    """As of transformers before 5.24."""

    def forward(self, hidden: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        return past_key_values, use_cache


class LaterLayer(nn.Module):
    """As of transformers from 5.24."""

    def forward(self, hidden: Tensor, cache: Any = None, use_cache: bool = False) -> Any:
        return cache, use_cache


@pytest.mark.parametrize("layer", [EarlierLayer(), LaterLayer()])
@pytest.mark.parametrize("kept", [DynamicCache(), None])
def test_layers_of_both_kinds_get_the_cache(layer: nn.Module, kept: DynamicCache | None) -> None:
    """The earlier name warned with every layer, and goes with 5.40."""
    assert layer(None, **cache_arguments(layer, kept)) == (kept, kept is not None)
