"""MiniCPM-V 4.7: as MiniCPM-V 4.6, but that the cells of an image are numbered on two axes.

Markers around an image stand just outside its corners, and text goes on behind its longer side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdrpn_core.geometry import GridShape
from sdrpn_core.models.minicpmv import MERGED, MODE, MiniCpmVAdapter
from sdrpn_core.models.qwen2_5_vl import Qwen2_5VlAdapter


class MiniCpmV47Adapter(MiniCpmVAdapter):
    """Adapter of ``MiniCPMV4_7ForConditionalGeneration``."""

    text_positions = staticmethod(Qwen2_5VlAdapter.text_positions)

    def position_ids(self, input_ids: Tensor, grids: Sequence[GridShape]) -> Tensor:
        """(3, L) time, height and width positions, by the stock model."""
        positions: Tensor = self.model.model.get_rope_index(
            input_ids[None],
            mm_token_type_ids=(input_ids == self.image_token_id).int()[None],
            target_sizes=torch.tensor(grids) * MERGED,
            downsample_mode=MODE,
        )[0]
        return positions[:, 0]
