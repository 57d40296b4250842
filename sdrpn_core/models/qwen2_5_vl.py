"""Qwen2-VL and Qwen2.5-VL: dynamic or square grids, multimodal rotary positions.

The towers differ, Qwen2.5-VL's attends in windows, but that is the stock model's affair.

A cell of the grid is a merged block of patches (2 x 2 patches of 14 pixels). Labels are made on a
square grid of fixed size; answering may follow the image's shape. Positions have three axes (time,
height, width) and come from the model's own ``get_rope_index``, so that prompts with several images
get exactly the stock model's.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from data_contracts.profiles import (
    DynamicGrid,
    FamilyDefaults,
    GridRule,
    ImageSettings,
    ModelProfile,
    SquareGrid,
)
from data_contracts.training import TrainingConfig
from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.images import PreparedImages, mean_colour, paste_all, processed
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.models.window_attention import use_joint_windows

GRIDS = ImageSettings(
    fill=(127, 127, 127),
    labels=SquareGrid(side=24),
    answers=DynamicGrid(min_cells=576, max_cells=576),
)
"""The reference's: a grey letterbox of 24 x 24 cells for labels, as many cells for answers."""
MAX_ASPECT_RATIO = 100.0
"""Longer images are padded: the stock processor refuses a ratio above 200."""


class Qwen2_5VlAdapter(ModelAdapter):
    """Adapter of ``Qwen2_5_VLForConditionalGeneration`` and ``Qwen2VLForConditionalGeneration``."""

    defaults = FamilyDefaults(
        prompt=(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            "{question}{images}<|im_end|>\n<|im_start|>assistant\n"
        ),
        images=GRIDS,
        final_norm=False,
        rotary_scores=True,
        training=TrainingConfig(batch_size=128, learning_rate=1e-4, betas=(0.9, 0.999)),
    )

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        profile: ModelProfile,
        image_processor: BaseImageProcessor,
    ) -> None:
        super().__init__(model, tokenizer, profile, image_processor)
        use_joint_windows(model.model.visual)
        self.fill = profile.images.fill or mean_colour(image_processor)
        if profile.images.labels is None or profile.images.answers is None:
            raise ModelError(
                f"profile {profile.name!r} gives no grid rule: set images.labels and "
                f"images.answers, {profile.family} models take grids of any size"
            )
        self.label_grid: GridRule = profile.images.labels
        self.answer_grid: GridRule = profile.images.answers
        vision = model.config.vision_config
        self.merge_size = int(vision.spatial_merge_size)
        self.cell_side = int(vision.patch_size) * self.merge_size
        self._check_processor(int(vision.patch_size))
        self.input_side = self._side(self.answer_grid) * self.cell_side

    def letterbox(self, image_size: tuple[int, int], *, for_labels: bool = False) -> Letterbox:
        """Centred on a square of the longer side, or the image itself on a dynamic grid."""
        if isinstance(self._rule(for_labels), SquareGrid):
            return Letterbox.square(image_size)
        return Letterbox.limited(image_size, MAX_ASPECT_RATIO)

    def pixels_seen(self, image: ImageFeatures) -> tuple[int, int]:
        """The size that this image's canvas was resized to."""
        return image.grid.width * self.cell_side, image.grid.height * self.cell_side

    def image_placeholder(self) -> str:
        """One image token, between the markers that the chat template writes."""
        return "<|vision_start|><|image_pad|><|vision_end|>"

    def prepare_images(
        self, images: Sequence[Image.Image], *, for_labels: bool = False
    ) -> PreparedImages:
        """Place, normalise and cut into patches."""
        rule = self._rule(for_labels)
        letterboxes = [self.letterbox(image.size, for_labels=for_labels) for image in images]
        if isinstance(rule, SquareGrid):
            # Drawn at its final size: the processor's rounding may miss the grid by a cell.
            side = rule.side * self.cell_side
            return self._cut(images, letterboxes, [(side, side)] * len(images), do_resize=False)
        cell_area = self.cell_side**2
        bounds = {
            "shortest_edge": rule.min_cells * cell_area,
            "longest_edge": rule.max_cells * cell_area,
        }
        sizes = [(box.canvas_width, box.canvas_height) for box in letterboxes]
        return self._cut(images, letterboxes, sizes, do_resize=True, size=bounds)

    def prepare_crops(
        self, crops: Sequence[Image.Image], max_tokens: int | None = None
    ) -> PreparedImages:
        """With a budget, crops are drawn smaller: cheaper in tower and decoder alike, and coarser.

        They keep their shape, and never take more cells than the budget; the stock processor, which
        draws them otherwise, may exceed its bounds by a row.
        """
        self.check_crop_tokens(max_tokens)
        if max_tokens is None:
            return self.prepare_images(crops)
        letterboxes = [self._budget_letterbox(crop.size, max_tokens) for crop in crops]
        grids = [self._budget_grid(letterbox, max_tokens) for letterbox in letterboxes]
        sizes = [(grid.width * self.cell_side, grid.height * self.cell_side) for grid in grids]
        return self._cut(crops, letterboxes, sizes, do_resize=False)

    def _budget_letterbox(self, crop_size: tuple[int, int], max_tokens: int) -> Letterbox:
        """As of an image, but no longer than all the budget's cells in a row."""
        if isinstance(self.answer_grid, SquareGrid):
            return self.letterbox(crop_size)
        return Letterbox.limited(crop_size, min(MAX_ASPECT_RATIO, max_tokens))

    def _budget_grid(self, letterbox: Letterbox, max_tokens: int) -> GridShape:
        """The canvas's shape in at most ``max_tokens`` cells."""
        width = letterbox.canvas_width / self.cell_side
        height = letterbox.canvas_height / self.cell_side
        least, most = self._cell_bounds()
        num_cells = min(max(width * height, least), most, max_tokens)
        scale = math.sqrt(num_cells / (width * height))
        # Rounded down, so that the product stays within; a hair more, for what is whole already.
        rows, columns = (max(math.floor(side * scale + 1e-6), 1) for side in (height, width))
        return GridShape(rows, columns)

    def _cell_bounds(self) -> tuple[int, int]:
        """Fewest and most cells of an answering image."""
        if isinstance(self.answer_grid, SquareGrid):
            return self.answer_grid.side**2, self.answer_grid.side**2
        return self.answer_grid.min_cells, self.answer_grid.max_cells

    @torch.inference_mode()
    def encode_prepared(self, prepared: PreparedImages) -> list[ImageFeatures]:
        """One pass of the tower over the patches of all images."""
        output = self.model.get_image_features(
            pixel_values=prepared.inputs["pixel_values"].to(self.device),
            image_grid_thw=prepared.inputs["image_grid_thw"].to(self.device),
            return_dict=True,
        )
        deepstack = self._deepstack(output, len(prepared.grids))
        return [
            ImageFeatures(tokens=tokens, grid=grid, letterbox=letterbox, deepstack=levels)
            for tokens, grid, letterbox, levels in zip(
                output.pooler_output, prepared.grids, prepared.letterboxes, deepstack, strict=True
            )
        ]

    def position_ids(self, input_ids: Tensor, grids: Sequence[GridShape]) -> Tensor:
        """(3, L) time, height and width positions, as the stock model computes them."""
        patch_grids = torch.tensor(
            [[1, grid.height * self.merge_size, grid.width * self.merge_size] for grid in grids],
            device=input_ids.device,
        )
        positions: Tensor = self.model.model.get_rope_index(
            input_ids[None],
            mm_token_type_ids=(input_ids == self.image_token_id).int()[None],
            image_grid_thw=patch_grids,
        )[0]
        return positions[:, 0]

    @staticmethod
    def text_positions(positions: Tensor) -> Tensor:
        """(N, L) -> (3, N, L): text advances on all axes together."""
        return positions.expand(3, -1, -1)

    def _cut(
        self,
        images: Sequence[Image.Image],
        letterboxes: Sequence[Letterbox],
        sizes: Sequence[tuple[int, int]],
        **resize: Any,
    ) -> PreparedImages:
        """Draw canvases of some (width, height) and let the stock processor cut them up."""
        canvases = paste_all(letterboxes, images, self.fill, sizes)
        inputs = processed(self.image_processor, canvases, self.dtype, **resize)
        grids = (
            GridShape(height // self.merge_size, width // self.merge_size)
            for _, height, width in inputs["image_grid_thw"].tolist()
        )
        return PreparedImages(letterboxes=tuple(letterboxes), grids=tuple(grids), inputs=inputs)

    def _deepstack(self, output: Any, num_images: int) -> list[tuple[Tensor, ...]]:
        """Features that early decoder layers add, per image: none in this family."""
        del output
        return [()] * num_images

    def _rule(self, for_labels: bool) -> GridRule:
        return self.label_grid if for_labels else self.answer_grid

    @staticmethod
    def _side(rule: GridRule) -> int:
        return rule.side if isinstance(rule, SquareGrid) else round(math.sqrt(rule.max_cells))

    def _check_processor(self, patch_size: int) -> None:
        found = (int(self.image_processor.patch_size), int(self.image_processor.merge_size))
        if found != (patch_size, self.merge_size):
            raise ModelError(
                f"the image processor of {self.profile.model_id!r} cuts patches of {found[0]} "
                f"pixels merged {found[1]} x {found[1]}, the model wants {patch_size} merged "
                f"{self.merge_size} x {self.merge_size}: load both from the same repository"
            )
