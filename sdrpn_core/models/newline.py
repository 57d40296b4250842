"""What LLaVA-NeXT and LLaVA-OneVision share: behind the cells of an image comes a newline."""

import numpy as np
import torch
from torch import Tensor

from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.models.llava import LlavaAdapter
from sdrpn_core.models.prompts import ImageFeatures


class NewlineAdapter(LlavaAdapter):
    """A family whose images end with an embedding of their own, ``image_newline``."""

    @classmethod
    def num_tokens(cls, grid: GridShape) -> int:
        """Its cells and the newline."""
        return grid.num_cells + 1

    def image_features(self, cells: Tensor, grid: GridShape, letterbox: Letterbox) -> ImageFeatures:
        """With the newline that the model has learnt."""
        newline: Tensor = self.model.model.image_newline
        return ImageFeatures(
            tokens=torch.cat([cells, newline[None].to(cells)]),
            grid=grid,
            letterbox=letterbox,
            breaks=np.arange(grid.num_cells + 1) == grid.num_cells,
        )
