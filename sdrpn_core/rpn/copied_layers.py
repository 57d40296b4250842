"""Whether an RPN can be copied from a model's layers: asked before labels are made for it."""

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers.models.cohere2.modeling_cohere2 import Cohere2Attention

from data_contracts.profiles import RpnShape
from sdrpn_core.decoding.layer_pass import layer_kind
from sdrpn_core.decoding.part_names import HEAD_NORMS, input_norm
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.profile_checks import check_shape
from sdrpn_core.rpn.shared_experts import shared_parts

Rotary: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A family's own application of (cos, sin) to queries or keys."""

_PLAIN = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Precisions that say all of a weight: one of eight bits has its scale elsewhere."""


def check_copyable(adapter: ModelAdapter, shape: RpnShape) -> None:
    """Refuse a model that no RPN of this shape can be copied from and trained; copies nothing.

    Raises:
        ModelError: if the model has too few layers, they are laid out in an unknown way or
            quantized, the branch comes before the last deepstack layer, or the last copied layer
            has no heads.
    """
    check_shape(
        adapter.profile,
        shape,
        adapter.decoder.attention_layers,
        adapter.num_deepstack_layers,
    )
    first, last = shape.branch_layer, shape.last_layer
    stack = adapter.decoder.layers
    if not all(_is_trainable(layer) for layer in stack[first : last + 1]):
        raise ModelError(
            f"layers {first} to {last} are quantized, and the RPN copies and trains them: load "
            "the model's unquantized repository (set model_id in the profile)"
        )
    scoring_attention(stack, shape)


def check_in_memory(stack: Sequence[nn.Module], shape: RpnShape) -> None:
    """Refuse layers that this run's ``device_map`` keeps elsewhere; another run may hold them.

    Raises:
        ModelError: if one is not in the devices' memory.
    """
    first, last = shape.branch_layer, shape.last_layer
    if any(p.is_meta for layer in stack[first : last + 1] for p in layer.parameters()):
        raise ModelError(
            f"device_map keeps some of layers {first} to {last} outside the devices' memory, "
            "and the RPN copies them: map them to a GPU or the CPU, or use more GPUs"
        )


def scoring_attention(stack: Sequence[nn.Module], shape: RpnShape) -> Any:
    """Attention of the layer that scores.

    Args:
        stack: the layers of a stock text model.
        shape: of the RPN.

    Raises:
        ModelError: if there is no such layer, or it is not laid out as scoring needs it.
    """
    if shape.last_layer >= len(stack):
        raise ModelError(
            f"the RPN copies layers {shape.branch_layer} to {shape.last_layer}, the model has "
            f"{len(stack)}: lower branch_layer or depth in the profile"
        )
    layer = stack[shape.last_layer]
    attention: Any = getattr(layer, "self_attn", None)
    parts = (layer,) if attention is None else (layer, attention)
    names = {name for part in parts for name, _ in part.named_children()}
    missing = {"q_proj", "k_proj"} - names
    if input_norm(layer) is None:
        missing.add("input_layernorm")
    if missing:
        raise ModelError(
            f"{type(layer).__name__} has no {' and no '.join(sorted(missing))}: the RPN scores "
            "with a layer's input norm, query and key, so this family cannot be used yet"
        )
    _check_norms(attention)
    if shape.rotary_scores:
        rotary_of(attention)
    return attention


def rotary_of(attention: Any) -> Rotary | None:
    """The family's own function, which knows how its heads are laid out: in halves or in pairs.

    None for a layer that turns nothing, as every fourth does in some families.

    Raises:
        ModelError: if the family has none of the usual name.
    """
    if not _turns_heads(attention):
        return None
    module = sys.modules[type(attention).__module__]
    rotary = getattr(module, "apply_rotary_pos_emb", None)
    if rotary is None:
        raise ModelError(
            f"{module.__name__} has no apply_rotary_pos_emb: set rotary_scores to false in the "
            "profile's rpn"
        )
    # Where the package ``kernels`` is installed, transformers puts a module in its place.
    takes_pairs = "k" in inspect.signature(getattr(rotary, "forward", rotary)).parameters
    return partial(_turned_of_pair, rotary) if takes_pairs else rotary


def _turns_heads(attention: Any) -> bool:
    """Whether a layer turns its heads: Cohere's do where they see a window, others say so, or have
    no angles for a kind of layers."""
    if isinstance(attention, Cohere2Attention):
        return attention.sliding_window is not None
    angles = getattr(attention.config, "rope_parameters", None) or {}
    if angles.get(layer_kind(attention), True) is None:
        return False
    return bool(getattr(attention, "use_rope", True))


def _turned_of_pair(rotary: Callable[..., Any], heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What most stock functions, which turn a query and a key by the same angle, make of one."""
    turned: Tensor = rotary(heads, heads, cos, sin)[0]
    return turned


def _check_norms(attention: nn.Module) -> None:
    """Refuse norms of queries or keys that scoring would leave out, or not apply head by head."""
    norms = {
        name: norm
        for name, norm in attention.named_children()
        if "norm" in name and name.startswith(("q", "k"))
    }
    kind = type(attention).__name__
    if unknown := norms.keys() - {name for names in HEAD_NORMS.values() for name in names}:
        raise ModelError(
            f"{kind} has a {min(unknown)}, which the RPN's scores would leave out: this family "
            "cannot be used yet"
        )
    for name, norm in norms.items():
        weight = getattr(norm, "weight", None)
        if weight is not None and weight.shape != (attention.head_dim,):
            raise ModelError(
                f"{name} of {kind} spans all heads at once: only per-head norms are supported, so "
                "this model family cannot be used yet"
            )


def _is_trainable(layer: Any) -> bool:
    """Whether a layer's weights are numbers that gradients can change, not quantized ones.

    Those of its experts too: gradients pass through them.
    """
    projection = getattr(getattr(layer, "self_attn", None), "q_proj", None)
    has_weight = projection is None or isinstance(getattr(projection, "weight", None), nn.Parameter)
    has_experts = all(next(part.parameters(), None) is not None for part, _ in shared_parts(layer))
    plain = all(parameter.dtype in _PLAIN for parameter in layer.parameters())
    return has_weight and has_experts and plain
