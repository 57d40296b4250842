"""Parts of stock text models by what they do: LFM's are not named as Llama's, which others took
over."""

from typing import Any, Literal

from torch import nn

INPUT_NORMS = ("input_layernorm", "operator_norm")
_FINAL_NORMS = ("norm", "embedding_norm")
_MIXERS = ("linear_attn", "conv")
HEAD_NORMS = {"q": ("q_norm", "q_layernorm"), "k": ("k_norm", "k_layernorm")}
"""Of the queries and of the keys, head by head."""


def input_norm(layer: nn.Module) -> Any:
    """The norm that a layer's queries, keys and values are made behind; None if it has none."""
    return _first(layer, INPUT_NORMS)


def final_norm(text_model: nn.Module) -> Any:
    """The norm behind the last layer.

    Raises:
        AttributeError: if there is none of a known name.
    """
    found = _first(text_model, _FINAL_NORMS)
    if found is None:
        raise AttributeError(f"{type(text_model).__name__} has no norm behind its last layer")
    return found


def state_mixer(layer: nn.Module) -> Any:
    """What hands a state from column to column; None in a layer that has attention heads."""
    return _first(layer, _MIXERS)


def head_norm(attention: nn.Module, of: Literal["q", "k"]) -> nn.Module | None:
    """The norm of each query, or of each key, in families that have one."""
    found: nn.Module | None = _first(attention, HEAD_NORMS[of])
    return found


def _first(module: nn.Module, names: tuple[str, ...]) -> Any:
    """The first of these parts that a module has."""
    parts = (getattr(module, name, None) for name in names)
    return next((part for part in parts if isinstance(part, nn.Module)), None)
