"""Mistral Small 3.1, 3.2 and Ministral 3: Pixtral tower, grids of any size, a break after each row.

A cell of the grid is a merged block of patches (2 x 2 patches of 14 pixels). The decoder reads a
row of cells, a break, the next row, and behind the last one the end of the image. Both are tokens
of the vocabulary; they tell it how wide an image is, for positions count on in one dimension.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_contracts.profiles import DynamicGrid, FamilyDefaults, ImageSettings, SquareGrid
from data_contracts.training import QWEN_TRAINING
from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.models.dynamic import DynamicAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.images import PreparedImages
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.threads import in_threads

GRIDS = ImageSettings(
    labels=SquareGrid(side=24),
    answers=DynamicGrid(min_cells=576, max_cells=576),
)
"""As many cells as for Qwen; the tower itself takes up to 55 a side."""


class Mistral3Adapter(DynamicAdapter):
    """Adapter of ``Mistral3ForConditionalGeneration``."""

    defaults = FamilyDefaults(
        prompt="<s>[INST]{images}{question}[/INST]",
        images=GRIDS,
        final_norm=False,
        rotary_scores=True,
        training=QWEN_TRAINING,
    )
    breaks_a_row = 1

    def set_up(self) -> None:
        """Sides, and the tokens that break rows."""
        vision = self.model.config.vision_config
        self.cell_side = int(vision.patch_size) * int(self.model.config.spatial_merge_size)
        self.max_side = int(vision.image_size) // self.cell_side
        super().set_up()
        self.break_id = self._known("[IMG_BREAK]")
        self.end_id = self._known("[IMG_END]")

    def prepare_free(
        self, images: Sequence[Image.Image], letterboxes: Sequence[Letterbox], rule: DynamicGrid
    ) -> PreparedImages:
        """On grids rounded up as the stock processor does, which may exceed the rule's bounds."""
        return self.draw(images, letterboxes, [self._grid_around(box, rule) for box in letterboxes])

    def canvas_inputs(
        self, canvases: Sequence[Image.Image], grids: Sequence[GridShape]
    ) -> dict[str, Tensor]:
        """Rescaled and normalised by the stock processor, at their final size."""
        return {"pixel_values": torch.cat(in_threads(self._pixels, canvases))}

    @torch.inference_mode()
    def encode_prepared(self, prepared: PreparedImages) -> list[ImageFeatures]:
        """One pass of the tower for each image: it would mask all patches of several at once."""
        sizes = [3 * grid.num_cells * self.cell_side**2 for grid in prepared.grids]
        pixels = torch.split(prepared.inputs["pixel_values"], sizes)
        return [
            self._in_rows(self._cells(own, grid), grid, letterbox)
            for own, grid, letterbox in zip(
                pixels, prepared.grids, prepared.letterboxes, strict=True
            )
        ]

    def _grid_around(self, letterbox: Letterbox, rule: DynamicGrid) -> GridShape:
        """Whole pixels, then whole cells around them."""
        size = letterbox.canvas_height, letterbox.canvas_width
        height, width = (side / self.cell_side for side in size)
        scale = self.scale_of(width, height, rule)
        rows, columns = (
            max(math.ceil(math.floor(side * scale + 1e-6) / self.cell_side), 1) for side in size
        )
        return GridShape(rows, columns)

    def _pixels(self, canvas: Image.Image) -> Tensor:
        """(3 * pixels,) of a canvas: canvases of several shapes lie one behind the other."""
        prepared = self.image_processor([canvas], do_resize=False, return_tensors="pt")
        pixels: Tensor = prepared["pixel_values"].flatten()
        return pixels.to(self.dtype)

    def _cells(self, pixels: Tensor, grid: GridShape) -> Tensor:
        """(C, d) features of a canvas."""
        height, width = grid.height * self.cell_side, grid.width * self.cell_side
        canvas = pixels.to(self.device).view(1, 3, height, width)
        # The stock class squeezes its output: a single cell in all would lose an axis.
        num_canvases = 2 if grid.num_cells == 1 else 1
        output = self.model.get_image_features(
            pixel_values=canvas.expand(num_canvases, -1, -1, -1),
            image_sizes=torch.tensor([[height, width]] * num_canvases),
            return_dict=True,
        )
        cells: Tensor = output.pooler_output[0]
        return cells

    def _in_rows(self, cells: Tensor, grid: GridShape, letterbox: Letterbox) -> ImageFeatures:
        """The image with a break behind every row, and its end behind the last."""
        ids = [self.break_id] * (grid.height - 1) + [self.end_id]
        ends = self.decoder.embedding(torch.tensor(ids, device=self.device)).to(cells)
        breaks = np.zeros((grid.height, grid.width + 1), dtype=np.bool_)
        breaks[:, -1] = True
        return ImageFeatures(
            tokens=torch.cat([cells.view(*grid, -1), ends[:, None]], dim=1).flatten(0, 1),
            grid=grid,
            letterbox=letterbox,
            breaks=breaks.ravel(),
            break_ids=tuple(sorted(set(ids))),
        )

    def _known(self, token: str) -> int:
        """A token's number in the vocabulary.

        Raises:
            ModelError: if it is not in there.
        """
        found: int | None = self.tokenizer.get_vocab().get(token)
        if found is None:
            raise ModelError(
                f"{self.profile.model_id}: its tokenizer has no {token}, which ends rows of an "
                "image: use the tokenizer that belongs to the model"
            )
        return found
