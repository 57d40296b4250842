"""A vision tower that sees some patches of its canvases only.

What is left out is as if the tower's attention were barred from it, without being computed. The
others keep the places that they have on the canvas, and a class token stays.

Shape legend: N canvases, P patches of a canvas, K kept ones, L columns, d width of the tower.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPVisionModel, PreTrainedModel, SiglipVisionModel
from transformers.masking_utils import create_bidirectional_mask

from sdrpn_core.models.errors import ModelError
from sdrpn_core.row_groups import pass_cost_on, similar_lengths


@dataclass(frozen=True)
class PatchTower:
    """A stock tower, and how the decoder's features are made of its states."""

    tower: PreTrainedModel
    depths: Sequence[int]
    """As of ``tower_states``."""
    project: Callable[[Tensor], Tensor]
    """States of any number of patches, those of all depths side by side, to features."""

    def features(self, pixels: Tensor, patches: Sequence[NDArray[np.bool_]]) -> Sequence[Tensor]:
        """(K, d) features of the kept patches of each canvas; arguments as of ``tower_states``."""
        states = tower_states(self.tower, pixels, patches, self.depths)
        joined = torch.cat([torch.cat(own, dim=-1) for own in states])
        return torch.split(self.project(joined), [len(own[0]) for own in states])


def tower_states(
    tower: PreTrainedModel,
    pixels: Tensor,
    patches: Sequence[NDArray[np.bool_]],
    depths: Sequence[int],
) -> list[list[Tensor]]:
    """Hidden states of the kept patches.

    Args:
        tower: CLIP's or SigLIP's, as stock models hold it.
        pixels: (N, 3, H, W) on the tower's device.
        patches: (P,) of each canvas, True for those to keep; at least one.
        depths: layers after which states are wanted, as negative or other indices into the stock
            tower's ``hidden_states``, whose first is what enters the first layer.

    Returns:
        Of each canvas, (K, d) at each depth.

    Raises:
        ModelError: if the tower is another's.
    """
    if not isinstance(tower, CLIPVisionModel | SiglipVisionModel):
        raise ModelError(
            f"its vision tower ({tower.config.model_type}) cannot leave out what a masked crop "
            "hides, as CLIP's and SigLIP's can: leave out mask_tower"
        )
    lengths = {row: int(np.count_nonzero(kept)) for row, kept in enumerate(patches)}
    found: list[list[Tensor]] = [[]] * len(patches)
    for rows in similar_lengths(lengths, pass_cost_on(pixels.device.type)):
        states = _group_states(tower, pixels[rows], [patches[row] for row in rows], depths)
        for row, own in zip(rows, states, strict=True):
            found[row] = own
    return found


def _group_states(
    tower: PreTrainedModel,
    pixels: Tensor,
    patches: Sequence[NDArray[np.bool_]],
    depths: Sequence[int],
) -> list[list[Tensor]]:
    """All canvases at once, each padded on its right to the one that keeps the most."""
    embeds = tower.embeddings(pixels)
    num_special = embeds.shape[1] - patches[0].size  # CLIP's class token
    kept = [torch.from_numpy(np.flatnonzero(own)) for own in patches]
    columns = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=-1)
    is_kept = torch.nn.functional.pad(columns >= 0, (num_special, 0), value=True)
    columns = torch.cat(
        [torch.arange(num_special).expand(len(kept), -1), columns.clamp_min(0) + num_special], dim=1
    ).to(embeds.device)
    hidden = embeds.gather(1, columns[..., None].expand(-1, -1, embeds.shape[2]))
    if isinstance(tower, CLIPVisionModel):
        hidden = tower.pre_layrnorm(hidden)
    mask = None if is_kept.all() else is_kept.to(embeds.device)
    mask = create_bidirectional_mask(tower.config, hidden, mask)
    layers = tower.encoder.layers
    wanted = [depth % (len(layers) + 1) for depth in depths]
    states = {0: hidden}
    for number, layer in enumerate(layers[: max(wanted)], start=1):
        hidden = layer(hidden, mask)
        states[number] = hidden
    ends = [num_special + len(own) for own in kept]
    return [
        [states[depth][row, num_special:end] for depth in wanted] for row, end in enumerate(ends)
    ]
