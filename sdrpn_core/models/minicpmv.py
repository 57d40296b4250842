"""MiniCPM-V 4.6: SigLIP tower, grids of any size, four patches a token, before Qwen3.5's decoder.

The model was trained with sixteen patches a token and with four. Its stock processor takes sixteen,
left to itself, and shows an image as a whole and then in slices. Here an image is the whole alone,
in four times as many tokens: a region is found on a grid of 16 by 16 cells, not of 8 by 8, and what
slices are for, a crop does.
"""

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from data_contracts.profiles import DynamicGrid, FamilyDefaults, GridRule, ImageSettings, SquareGrid
from data_contracts.training import QWEN_TRAINING
from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.models.dynamic import DynamicAdapter
from sdrpn_core.models.images import PreparedImages
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.threads import in_threads

MODE = "4x"
"""Four patches a token, as the stock class names it."""
MERGED = 2
"""Patches of a cell's side in this mode."""


class MiniCpmVAdapter(DynamicAdapter):
    """Adapter of ``MiniCPMV4_6ForConditionalGeneration``."""

    # As the chat template writes a question where it is asked for no thinking: a thought that is
    # over.
    defaults = FamilyDefaults(
        prompt=(
            "<|im_start|>user\n{images}{question}<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        ),
        images=ImageSettings(
            labels=SquareGrid(side=16), answers=DynamicGrid(min_cells=256, max_cells=256)
        ),
        final_norm=False,
        rotary_scores=True,
        training=QWEN_TRAINING,
    )

    def set_up(self) -> None:
        """Patches and how many are merged."""
        config = self.model.config
        self.patch_side = int(config.vision_config.patch_size)
        self.cell_side = self.patch_side * MERGED
        super().set_up()
        merged = int(config.merge_kernel_size[0]) ** int(config.merger_times)
        self.check_cells((int(self.image_processor.patch_size), MERGED), (self.patch_side, merged))

    def image_placeholders(self, num_images: int) -> str:
        """Each with its number, between the markers of the stock processor; a line each."""
        token = self.image_placeholder()
        return "".join(
            f"<image_id>{number}</image_id><image>{token}</image>\n" for number in range(num_images)
        )

    def canvas_inputs(
        self, canvases: Sequence[Image.Image], grids: Sequence[GridShape]
    ) -> dict[str, Tensor]:
        """Rescaled, normalised and cut into patches by the stock processor, at their final size."""
        return {"patches": torch.cat(in_threads(self._patches, canvases))}

    @torch.inference_mode()
    def encode_prepared(self, prepared: PreparedImages) -> list[ImageFeatures]:
        """One pass of the tower over the patches of all images."""
        patches = prepared.inputs["patches"].to(self.device)
        output = self.model.get_image_features(
            pixel_values=patches.permute(1, 2, 0, 3).flatten(2)[None],
            target_sizes=torch.tensor(prepared.grids, dtype=torch.int32) * MERGED,
            downsample_mode=MODE,
            return_dict=True,
        )
        return prepared.encoded(output.pooler_output)

    def _grid_within(
        self, letterbox: Letterbox, rule: GridRule, max_tokens: float = math.inf
    ) -> GridShape:
        """That of the stock processor for an image without slices, where the budget allows it."""
        if isinstance(rule, DynamicGrid):
            sides = self.image_processor.find_best_resize(
                (letterbox.canvas_height, letterbox.canvas_width),
                scale_resolution=self._mean_side(letterbox, rule),
                patch_size=self.patch_side,
                downsample_mode=MODE,
                allow_upscale=True,
            )
            grid = GridShape(*(side // self.cell_side for side in sides))
            if grid.num_cells <= max_tokens:
                return grid
        return super()._grid_within(letterbox, rule, max_tokens)

    def _mean_side(self, letterbox: Letterbox, rule: DynamicGrid) -> float:
        """Of a square of as many cells as a canvas is to have, in pixels."""
        num_cells = letterbox.canvas_width * letterbox.canvas_height / self.cell_side**2
        return math.sqrt(min(max(num_cells, rule.min_cells), rule.max_cells)) * self.cell_side

    def _patches(self, canvas: Image.Image) -> Tensor:
        """(P, 3, s, s) of a canvas, row by row: the stock processor puts them side by side."""
        prepared = self.image_processor(
            [canvas], do_resize=False, slice_mode=False, return_tensors="pt"
        )
        patches: Tensor = prepared["pixel_values"][0].unflatten(-1, (-1, self.patch_side))
        return patches.permute(2, 0, 1, 3).to(self.dtype)
