"""Gemma 4 12B: no vision tower, pixels go into the decoder; grids of any size.

A cell of the grid is a patch of 48 x 48 pixels of the image, resized to as many cells as it gets.
Five of six decoder layers look back at a window of tokens, and in those the tokens of an image also
see those that follow them in it; these layers turn positions otherwise than the sixth, and have
smaller heads.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from data_contracts.profiles import (
    DynamicGrid,
    FamilyDefaults,
    ImageSettings,
    ModelProfile,
    SquareGrid,
)
from data_contracts.training import QWEN_TRAINING
from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.models.dynamic import DynamicAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.gemma import marked_image_token
from sdrpn_core.models.images import PreparedImages, mean_colour, paste_all
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.threads import in_threads

GRIDS = ImageSettings(
    fill=(0, 0, 0),
    labels=SquareGrid(side=23),
    answers=DynamicGrid(min_cells=560, max_cells=560),
)
"""As many cells as SD-RPN's authors train on (arXiv 2609.19745), twice the stock processor's; the
letterbox of labels, as for Qwen, takes the largest square of them."""


class Gemma4UnifiedAdapter(DynamicAdapter):
    """Adapter of ``Gemma4UnifiedForConditionalGeneration``."""

    shows_images_whole = True

    defaults = FamilyDefaults(
        prompt=(
            "<bos><|turn>user\n{images}{question}<turn|>\n<|turn>model\n"
            "<|channel>thought\n<channel|>"
        ),
        images=GRIDS,
        final_norm=False,
        rotary_scores=True,
        training=QWEN_TRAINING,
        width_per_head=240,
    )

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        profile: ModelProfile,
        image_processor: BaseImageProcessor,
    ) -> None:
        vision = model.config.vision_config
        if vision is None:
            raise ModelError(f"{profile.model_id} takes no images: use a model that does")
        self.patch_side = int(vision.patch_size)
        self.patches_a_side = int(vision.pooling_kernel_size)
        self.cell_side = self.patch_side * self.patches_a_side
        super().__init__(model, tokenizer, profile, image_processor)
        self.fill = profile.images.fill or mean_colour(image_processor)
        found = (int(image_processor.patch_size), int(image_processor.pooling_kernel_size))
        self.check_cells(found, (self.patch_side, self.patches_a_side))

    def image_placeholder(self) -> str:
        """One image token, between the markers that the stock processor writes."""
        return marked_image_token(self)

    def draw(
        self,
        images: Sequence[Image.Image],
        letterboxes: Sequence[Letterbox],
        grids: Sequence[GridShape],
    ) -> PreparedImages:
        """Rescaled by the stock processor, and cut into cells with the place of each."""
        sizes = [(grid.width * self.cell_side, grid.height * self.cell_side) for grid in grids]
        canvases = paste_all(letterboxes, images, self.fill, sizes, self.resample)
        cells = in_threads(lambda item: self._cells(*item), zip(canvases, grids, strict=True))
        inputs = {
            "pixel_values": torch.cat(cells),
            "image_position_ids": torch.cat([_places(grid) for grid in grids]),
        }
        return PreparedImages(letterboxes=tuple(letterboxes), grids=tuple(grids), inputs=inputs)

    @torch.inference_mode()
    def encode_prepared(self, prepared: PreparedImages) -> list[ImageFeatures]:
        """One projection of the cells of all images: each stands for itself."""
        output = self.model.get_image_features(
            pixel_values=prepared.inputs["pixel_values"][None].to(self.device),
            image_position_ids=prepared.inputs["image_position_ids"][None].to(self.device),
            return_dict=True,
        )
        (tokens,) = output.pooler_output
        counts = [grid.num_cells for grid in prepared.grids]
        return [
            ImageFeatures(tokens=own, grid=grid, letterbox=letterbox)
            for own, grid, letterbox in zip(
                tokens.split(counts), prepared.grids, prepared.letterboxes, strict=True
            )
        ]

    def _cells(self, canvas: Image.Image, grid: GridShape) -> Tensor:
        """(C, pixels) of a canvas; the stock processor cuts it into patches, of several a cell."""
        prepared = self.image_processor([canvas], do_resize=False, return_tensors="pt")
        count, side = self.patches_a_side, self.patch_side
        patches: Tensor = prepared["pixel_values"][0, : grid.num_cells * count**2]  # then padding
        by_place = patches.view(grid.height, count, grid.width, count, side, side, 3)
        cells = by_place.permute(0, 2, 1, 4, 3, 5, 6)
        return cells.reshape(grid.num_cells, -1).to(self.dtype)


def _places(grid: GridShape) -> Tensor:
    """(C, 2) column and row of every cell, in reading order."""
    rows = torch.arange(grid.height)[:, None].expand(grid)
    columns = torch.arange(grid.width).expand(grid)
    return torch.stack([columns, rows], dim=-1).flatten(0, 1)
