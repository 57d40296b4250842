"""How a stock decoder layer is given the cache."""

from functools import cache
from inspect import signature
from typing import Any

from torch import nn
from transformers import Cache


def cache_arguments(layer: Any, kept: Cache | None) -> dict[str, Any]:
    """What a stock layer's ``forward`` wants of a cache, or of none."""
    return {_name_of_cache(layer.__class__): kept, "use_cache": kept is not None}


@cache
def _name_of_cache(kind: type[nn.Module]) -> str:
    """Since transformers 5.24 another one; the old one goes with 5.40."""
    return "cache" if "cache" in signature(kind.forward).parameters else "past_key_values"
