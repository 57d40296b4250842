"""Mixtures of experts in the layers that an RPN copies: experts and router stay the model's own.

A layer of Qwen3-VL-30B-A3B has 604 M parameters in its 128 experts, of which a token meets 8, and
19 M in all the rest. Copies of the experts would be larger than many a model, their optimiser's
state three times that, and each would see a sixteenth of what little an RPN is trained on. So the
copy calls them where they are, and learns what it hands them. The router stays with them: experts
that do not change are best chosen as they were learnt, and nothing in the RPN's loss would keep
its choices spread. A shared expert, which every token meets, is an ordinary part of the layer and
is copied.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

_EXPERTS = "experts"
_ROUTERS = ("gate", "router")
"""What stock models call what chooses among the experts beside it."""


class SharedPart(nn.Module):
    """Calls a module of the frozen model from within a copy of what is around it.

    Nothing of that module is part of the copy: it has no parameters here to train, convert, count
    or save. Gradients pass through it.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self._parts = (part,)
        """In a tuple, where torch does not look for modules."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedPart":
        """Of a copy too, it calls the model's."""
        return SharedPart(*self._parts)

    def forward(self, *values: Tensor) -> Any:
        """Run the module in its own precision, whatever that of the copy is.

        Args:
            values: what the stock layer hands it, the hidden states first.

        Returns:
            What the module gives, in the precision of the states.
        """
        (part,) = self._parts
        states, own = values[0], next(part.parameters()).dtype
        with torch.autocast(states.device.type, enabled=False):
            output = part(*(_to_precision(value, own) for value in values))
        if isinstance(output, tuple):
            return tuple(_to_precision(value, states.dtype) for value in output)
        return _to_precision(output, states.dtype)


def copied_layer(layer: nn.Module) -> nn.Module:
    """A deep copy of a decoder layer, but for the experts and routers that it shares."""
    return deepcopy(layer, {id(part): SharedPart(part) for part in shared_parts(layer)})


def shared_parts(layer: nn.Module) -> list[nn.Module]:
    """Experts of a decoder layer and their routers; none in a layer without."""
    found = []
    for module in layer.modules():
        parts = dict(module.named_children())
        if _EXPERTS in parts:
            found += [parts[name] for name in (_EXPERTS, *_ROUTERS) if name in parts]
    return found


def _to_precision(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value
