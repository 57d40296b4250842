"""What fixed-grid families share: every image becomes one square canvas with one grid.

The letterbox does all geometry, never the hub's image processor: boxes then map between image and
grid by the same numbers that placed the pixels, and nothing is cropped away.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from data_contracts.profiles import ModelProfile
from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.models.base import ModelAdapter, ModelError
from sdrpn_core.models.images import PreparedImages, paste_all
from sdrpn_core.models.prompts import ImageFeatures


class SquareAdapter(ModelAdapter):
    """A family that sees each image padded to a square, on a grid of fixed size."""

    has_resizable_tower: ClassVar[bool] = True
    """The tower can interpolate its position embeddings, and so encode smaller canvases."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        profile: ModelProfile,
        image_processor: BaseImageProcessor,
    ) -> None:
        super().__init__(model, tokenizer, profile, image_processor)
        vision = model.config.vision_config
        self.input_side = int(vision.image_size)
        side = int(vision.image_size) // int(vision.patch_size)
        self.grid = GridShape(side, side)
        self.fill = profile.images.fill or self.default_fill()
        if profile.images.labels or profile.images.answers:
            raise ModelError(
                f"profile {profile.name!r} sets a grid rule, but {profile.family} has one fixed "
                "grid: remove images.labels and images.answers"
            )

    @abstractmethod
    def default_fill(self) -> tuple[int, int, int]:
        """Colour of the padding that the model was trained with."""

    @abstractmethod
    def canvas_inputs(self, canvases: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the tower gets of canvases, all of side ``input_side`` or of one smaller side."""

    @abstractmethod
    def encode_inputs(self, inputs: dict[str, Tensor], **resized: bool) -> Iterable[Tensor]:
        """(C, d) features of each canvas.

        Args:
            inputs: as made by ``canvas_inputs``.
            resized: what the tower wants to be told of canvases of another size than its own.
        """

    def letterbox(self, image_size: tuple[int, int], *, for_labels: bool = False) -> Letterbox:
        """Centred on a square of the longer side."""
        return Letterbox.square(image_size)

    def image_placeholder(self) -> str:
        """The token that the tokenizer keeps for one image."""
        return str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))

    def prepare_images(
        self, images: Sequence[Image.Image], *, for_labels: bool = False
    ) -> PreparedImages:
        """On the one grid that there is."""
        return self._prepare(images, self.grid.width)

    def prepare_crops(
        self, crops: Sequence[Image.Image], max_tokens: int | None = None
    ) -> PreparedImages:
        """With a budget, crops go through the tower at a smaller size, its position embeddings
        interpolated: cheaper in tower and decoder alike, and coarser."""
        self.check_crop_tokens(max_tokens)
        side = self.grid.width if max_tokens is None else math.isqrt(max_tokens)
        return self._prepare(crops, min(side, self.grid.width))

    def check_crop_tokens(self, max_tokens: int | None) -> None:
        """At least one token; more than an image gets changes nothing."""
        if not self.has_resizable_tower:
            super().check_crop_tokens(max_tokens)
        elif max_tokens is not None and max_tokens < 1:
            raise ModelError(f"crop_tokens is {max_tokens}: give at least 1, or leave it out")

    @torch.inference_mode()
    def encode_prepared(self, prepared: PreparedImages) -> list[ImageFeatures]:
        """One pass of the tower: all canvases have one size."""
        resized = {} if prepared.grids[0] == self.grid else {"interpolate_pos_encoding": True}
        features = self.encode_inputs(prepared.inputs, **resized)
        return [
            ImageFeatures(tokens=tokens, grid=grid, letterbox=letterbox)
            for tokens, grid, letterbox in zip(
                features, prepared.grids, prepared.letterboxes, strict=True
            )
        ]

    def _prepare(self, images: Sequence[Image.Image], cells: int) -> PreparedImages:
        """Draw each image on a canvas of ``cells`` x ``cells``."""
        side = cells * self.input_side // self.grid.width
        letterboxes = tuple(self.letterbox(image.size) for image in images)
        canvases = paste_all(letterboxes, images, self.fill, [(side, side)] * len(images))
        return PreparedImages(
            letterboxes=letterboxes,
            grids=(GridShape(cells, cells),) * len(images),
            inputs=self.canvas_inputs(canvases),
        )
