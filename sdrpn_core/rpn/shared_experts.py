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

    def __init__(self, part: nn.Module, experts: nn.Module) -> None:
        """Take a part of a layer.

        Args:
            part: what is called.
            experts: of the layer, whose precision is that of its hidden states. A router may be in
                another: GLM's is in float32 in models of half precision.
        """
        super().__init__()
        self._parts = (part, experts)
        """In a tuple, where torch does not look for modules."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedPart":
        """Of a copy too, it calls the model's."""
        return SharedPart(*self._parts)

    def forward(self, states: Tensor, *chosen: Tensor) -> Any:
        """Run the module as it runs in the model, whatever the precision of the copy is.

        Args:
            states: the hidden states.
            chosen: what else the stock layer hands it, which comes from the router.

        Returns:
            New states in the precision of those that came; what a router gives as it is, for the
            experts.
        """
        part, experts = self._parts
        own = states.to(next(experts.parameters()).dtype)
        with torch.autocast(states.device.type, enabled=False):
            output = part(own, *chosen)
        return output if isinstance(output, tuple) else output.to(states.dtype)


def copied_layer(layer: nn.Module) -> nn.Module:
    """A deep copy of a decoder layer, but for the experts and routers that it shares."""
    shared = {id(part): SharedPart(part, experts) for part, experts in shared_parts(layer)}
    return deepcopy(layer, shared)


def shared_parts(layer: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Experts of a decoder layer and their routers, each with its experts; none in one without."""
    found = []
    for module in layer.modules():
        parts = dict(module.named_children())
        if _EXPERTS in parts:
            shared = [parts[name] for name in (_EXPERTS, *_ROUTERS) if name in parts]
            found += [(part, parts[_EXPERTS]) for part in shared]
    return found
