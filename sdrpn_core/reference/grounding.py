"""Grounding loss of the reference model's training: chosen heads look at the object asked about.

Large models come to ground from millions of examples. This one sees too few for that, so two of its
middle layers are told once, in training, what the words "red circle" of an answer refer to. The
pipeline knows nothing of it: calibration has to find the heads by itself.
"""

from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

GROUNDING_HEADS: Final = {3: (0, 1), 4: (2,)}
"""Layer -> heads that are taught to look at the object."""
_SMALLEST_MASS: Final = 1e-4


@dataclass
class GroundingLoss:
    """Collects, during one forward pass, how much attention falls on the target.

    Attributes:
        queries: (B, S) positions whose attention is judged.
        targets: (B, S) positions of the cells that show the object.
    """

    queries: Tensor
    targets: Tensor
    losses: list[Tensor] = field(default_factory=list)

    def add(self, layer: int, weights: Tensor) -> None:
        """Judge one layer's attention (B, H, S, S); layers without chosen heads are passed over."""
        if layer not in GROUNDING_HEADS:
            return
        chosen = weights[:, list(GROUNDING_HEADS[layer])].float()
        mass = (chosen * self.targets[:, None, None, :]).sum(-1).transpose(1, 2)
        self.losses.append(-mass[self.queries].clamp_min(_SMALLEST_MASS).log().mean())

    def mean(self) -> Tensor:
        """Mean over layers of the negative log share of attention on the target."""
        return torch.stack(self.losses).mean()
