"""Qwen2-VL and Qwen2.5-VL: dynamic or square grids, multimodal rotary positions.

The towers differ, Qwen2.5-VL's attends in windows, but that is the stock model's affair.

A cell of the grid is a merged block of patches (2 x 2 patches of 14 pixels). Labels are made on a
square grid of fixed size; answering may follow the image's shape. Positions have three axes (time,
height, width), which are exactly the stock model's for any number of images.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from data_contracts.profiles import DynamicGrid, FamilyDefaults, ImageSettings, SquareGrid
from data_contracts.training import QWEN_TRAINING
from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.models.dynamic import DynamicAdapter
from sdrpn_core.models.images import PreparedImages, paste_all, processed
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.models.window_attention import use_joint_windows

GRIDS = ImageSettings(
    fill=(127, 127, 127),
    labels=SquareGrid(side=24),
    answers=DynamicGrid(min_cells=576, max_cells=576),
)
"""The reference's: a grey letterbox of 24 x 24 cells for labels, as many cells for answers."""


class Qwen2_5VlAdapter(DynamicAdapter):
    """Adapter of ``Qwen2_5_VLForConditionalGeneration`` and ``Qwen2VLForConditionalGeneration``."""

    defaults = FamilyDefaults(
        prompt=(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            "{question}{images}<|im_end|>\n<|im_start|>assistant\n"
        ),
        images=GRIDS,
        final_norm=False,
        rotary_scores=True,
        training=QWEN_TRAINING,
    )
    image_text = "<|vision_start|><|image_pad|><|vision_end|>"

    def set_up(self) -> None:
        """Patches and how many are merged; the tower attends to its windows jointly."""
        vision = self.model.config.vision_config
        self.merge_size = int(vision.spatial_merge_size)
        self.cell_side = int(vision.patch_size) * self.merge_size
        super().set_up()
        use_joint_windows(self.model.model.visual)
        found = (int(self.image_processor.patch_size), int(self.image_processor.merge_size))
        self.check_cells(found, (int(vision.patch_size), self.merge_size))

    @property
    def pixels_a_cell(self) -> int:
        """What the stock processor counts for a cell where it bounds an image's size."""
        return self.cell_side**2

    def prepare_free(
        self, images: Sequence[Image.Image], letterboxes: Sequence[Letterbox], rule: DynamicGrid
    ) -> PreparedImages:
        """As the stock processor draws them, which may exceed the rule's bounds by a row."""
        bounds = {
            "shortest_edge": rule.min_cells * self.pixels_a_cell,
            "longest_edge": rule.max_cells * self.pixels_a_cell,
        }
        sizes = [(box.canvas_width, box.canvas_height) for box in letterboxes]
        canvases = paste_all(letterboxes, images, self.fill, sizes, self.resample)
        inputs = processed(self.image_processor, canvases, self.dtype, do_resize=True, size=bounds)
        grids = (
            GridShape(height // self.merge_size, width // self.merge_size)
            for _, height, width in inputs["image_grid_thw"].tolist()
        )
        return PreparedImages(tuple(letterboxes), tuple(grids), inputs)

    def canvas_inputs(
        self, canvases: Sequence[Image.Image], grids: Sequence[GridShape]
    ) -> dict[str, Tensor]:
        """At their final size: the processor's rounding may miss a grid by a cell."""
        return processed(self.image_processor, canvases, self.dtype, do_resize=False)

    @torch.inference_mode()
    def encode_prepared(self, prepared: PreparedImages) -> list[ImageFeatures]:
        """One pass of the tower over the patches of all images."""
        output = self.model.get_image_features(
            pixel_values=prepared.inputs["pixel_values"].to(self.device),
            image_grid_thw=prepared.inputs["image_grid_thw"].to(self.device),
            return_dict=True,
        )
        return prepared.encoded(output.pooler_output, self._deepstack(output))

    def position_ids(self, input_ids: Tensor, grids: Sequence[GridShape]) -> Tensor:
        """(3, L) time, height and width positions, as the stock model counts them.

        Its own function goes from token to token, which takes longer than the rest of a prompt.
        """
        positions = torch.arange(len(input_ids)).repeat(3, 1)
        is_image = (input_ids == self.image_token_id).int()
        end = 0
        for grid in grids:
            start = end + int(is_image[end:].argmax())
            end = start + grid.num_cells
            time, cells = positions[0, start].clone(), torch.arange(grid.num_cells)
            positions[0, start:end] = time
            positions[1, start:end] = time + cells // grid.width
            positions[2, start:end] = time + cells % grid.width
            positions[:, end:] += max(grid) - grid.num_cells  # text goes on behind the longer side
        return positions

    @staticmethod
    def text_positions(positions: Tensor) -> Tensor:
        """(N, L) -> (3, N, L): text advances on all axes together."""
        return positions.expand(3, -1, -1)

    def _deepstack(self, output: Any) -> Iterable[tuple[Tensor, ...]] | None:
        """Features that early decoder layers add, per image: none in this family."""
        del output
        return None
