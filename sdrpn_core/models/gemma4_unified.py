"""Gemma 4 12B: no vision tower, pixels go into the decoder; grids of any size.

Its stock class takes the pixels of a whole cell at once.
"""

import torch
from torch import Tensor

from sdrpn_core.geometry import GridShape
from sdrpn_core.models.gemma import AnyGemma4Adapter
from sdrpn_core.models.images import PreparedImages
from sdrpn_core.models.prompts import ImageFeatures


class Gemma4UnifiedAdapter(AnyGemma4Adapter):
    """Adapter of ``Gemma4UnifiedForConditionalGeneration``."""

    @torch.inference_mode()
    def encode_prepared(self, prepared: PreparedImages) -> list[ImageFeatures]:
        """One projection of the cells of all images: each stands for itself."""
        output = self.model.get_image_features(
            pixel_values=prepared.inputs["pixel_values"][None].to(self.device),
            image_position_ids=prepared.inputs["image_position_ids"][None].to(self.device),
            return_dict=True,
        )
        (tokens,) = output.pooler_output
        return prepared.encoded(tokens.split([grid.num_cells for grid in prepared.grids]))

    def of_patches(self, pixels: Tensor, places: Tensor, grid: GridShape) -> tuple[Tensor, Tensor]:
        """(C, pixels) of the cells, and (C, 2) their places."""
        count, side = self.patches_a_side, self.patch_side
        by_place = pixels.view(grid.height, count, grid.width, count, side, side, 3)
        cells = by_place.permute(0, 2, 1, 4, 3, 5, 6)
        corners = places.view(grid.height, count, grid.width, count, 2)[:, 0, :, 0]
        return cells.reshape(grid.num_cells, -1).to(self.dtype), corners.flatten(0, 1) // count
