"""What fixed-grid families share: every image becomes one square canvas with one grid.

The letterbox does all geometry, never the hub's image processor: boxes then map between image and
grid by the same numbers that placed the pixels, and nothing is cropped away.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig

from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.images import PreparedImages, paste_all
from sdrpn_core.models.masked_tower import PatchTower
from sdrpn_core.models.prompts import ImageFeatures

_TOWERS_OF_ROWS = {"pixtral"}
"""Their prompts hold a token after every row, and none is written here."""


class SquareAdapter(ModelAdapter):
    """A family that sees each image as one square of fixed size, on a grid of fixed size."""

    def set_up(self) -> None:
        """The one canvas and its grid."""
        self.input_side, self.grid = square_canvas(self.model.config)
        self.unseen_side = self.input_side % _side(self.model.config.vision_config.patch_size)
        """Pixels at the right and at the bottom that make no whole patch: nothing is drawn there,
        as the tower drops them (6 of 384 where patches have 14)."""
        self.fill = self.profile.images.fill or self.default_fill()
        if self.profile.images.labels or self.profile.images.answers:
            raise ModelError(
                f"profile {self.profile.name!r} sets a grid rule, but {self.profile.family} has "
                "one fixed grid: remove images.labels and images.answers"
            )

    @abstractmethod
    def default_fill(self) -> tuple[int, int, int]:
        """Colour of the padding that the model was trained with."""

    @abstractmethod
    def canvas_inputs(self, canvases: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the tower gets of canvases of side ``input_side``."""

    @abstractmethod
    def encode_inputs(self, inputs: dict[str, Tensor]) -> Iterable[Tensor]:
        """(C, d) features of each canvas, as made by ``canvas_inputs``."""

    def letterbox(self, image_size: tuple[int, int], *, for_labels: bool = False) -> Letterbox:
        """Centred on a square of the longer side."""
        return Letterbox.square(image_size)

    def pixels_seen(self, image: ImageFeatures) -> tuple[int, int]:
        """What images are drawn on."""
        del image
        return self.input_side - self.unseen_side, self.input_side - self.unseen_side

    def prepare_images(
        self, images: Sequence[Image.Image], *, for_labels: bool = False
    ) -> PreparedImages:
        """On the one grid that there is."""
        return self._prepare(images, self.grid)

    def prepare_crops(
        self, crops: Sequence[Image.Image], max_tokens: int | None = None
    ) -> PreparedImages:
        """With a budget, the tower sees crops as it does without, and its features are averaged.

        So the print is read at its full size. A canvas drawn smaller would be cheaper in the tower
        too, and costs much more accuracy.
        """
        self.check_crop_tokens(max_tokens)
        num_breaks = self.num_tokens(self.grid) - self.grid.num_cells  # as many on any grid
        side = self.grid.width if max_tokens is None else math.isqrt(max_tokens - num_breaks)
        side = min(side, self.grid.width)
        return self._prepare(crops, GridShape(side, side))

    @torch.inference_mode()
    def encode_prepared(self, prepared: PreparedImages) -> list[ImageFeatures]:
        """One pass of the tower."""
        features = list(self.encode_inputs(prepared.inputs))
        if len(features[0]) != self.grid.num_cells:
            raise ModelError(
                f"{self.profile.model_id}: the vision tower gives {len(features[0])} tokens for a "
                f"grid of {self.grid.width} by {self.grid.height} cells, and every cell needs one: "
                "vision_feature_select_strategy is 'default' for towers whose first token stands "
                "for no cell, and 'full' for those without such a token"
            )
        return [
            self.image_features(averaged(cells, self.grid, grid), grid, letterbox)
            for cells, grid, letterbox in zip(
                features, prepared.grids, prepared.letterboxes, strict=True
            )
        ]

    @torch.inference_mode()
    def encode_masked(
        self, prepared: PreparedImages, shown: Sequence[NDArray[np.bool_]]
    ) -> list[ImageFeatures]:
        """One pass of the tower over the patches that make a shown cell."""
        tower = self.patch_tower() if self.masks_tower else None
        if tower is None:
            return super().encode_masked(prepared, shown)
        patches = [refined(cells, self.grid) for cells in shown]
        pixels = prepared.inputs["pixel_values"].to(self.device)
        features = tower.features(pixels, [seen.ravel() for seen in patches])
        return [
            self.image_features(averaged_where(seen, kept, grid), grid, letterbox)
            for seen, kept, grid, letterbox in zip(
                patches, features, prepared.grids, prepared.letterboxes, strict=True
            )
        ]

    def patch_tower(self) -> PatchTower | None:
        """What encodes patches of ``pixel_values``; None where a token is no patch."""
        return None

    def image_features(self, cells: Tensor, grid: GridShape, letterbox: Letterbox) -> ImageFeatures:
        """(C, d) features of cells as the decoder gets them. Families with a break behind an image
        override this, and ``num_tokens``."""
        return ImageFeatures(tokens=cells, grid=grid, letterbox=letterbox)

    def _prepare(self, images: Sequence[Image.Image], grid: GridShape) -> PreparedImages:
        """Draw each image on the model's canvas; ``grid`` is that of its tokens."""
        letterboxes = tuple(self.letterbox(image.size) for image in images)
        seen = self.input_side - self.unseen_side
        canvases = paste_all(
            letterboxes, images, self.fill, [(seen, seen)] * len(images), self.resample
        )
        return PreparedImages(
            letterboxes=letterboxes,
            grids=(grid,) * len(images),
            inputs=self.canvas_inputs([self._input(canvas) for canvas in canvases]),
        )

    def _input(self, canvas: Image.Image) -> Image.Image:
        """A canvas with what the tower drops of its input."""
        if not self.unseen_side:
            return canvas
        whole = Image.new("RGB", (self.input_side, self.input_side), self.fill)
        whole.paste(canvas)
        return whole


def square_canvas(config: PreTrainedConfig) -> tuple[int, GridShape]:
    """Side in pixels of the canvas that a configuration's tower sees, and its grid of tokens.

    Raises:
        ModelError: if the tower sees no canvas of one size.
    """
    vision = config.vision_config
    if vision.model_type in _TOWERS_OF_ROWS:
        raise ModelError(
            f"its vision tower ({vision.model_type}) shows images in rows of any number, not on "
            "one square as the other models of its family: use another model"
        )
    side, patch_side = _side(vision.image_size), _side(vision.patch_size)
    num_cells = round(side // patch_side * getattr(config, "downsample_ratio", 1.0))  # InternVL's
    num_cells //= getattr(config, "scale_factor", 1)  # SmolVLM's
    num_cells //= getattr(config, "downsample_factor", 1)  # Aya Vision's
    pooled = getattr(config, "mm_tokens_per_image", None)  # Gemma's
    if pooled is not None:
        num_cells = math.isqrt(pooled)
    return side, GridShape(num_cells, num_cells)


def _side(size: int | Sequence[int]) -> int:
    """Of a square, which some configurations give as (height, width)."""
    return size if isinstance(size, int) else size[0]


def refined(cells: NDArray[np.bool_], grid: GridShape) -> NDArray[np.bool_]:
    """(h, w) cells -> the cells of a grid that is no coarser whose centres lie in them."""
    rows, columns = (
        (2 * np.arange(fine) + 1) * coarse // (2 * fine)
        for fine, coarse in zip(grid, cells.shape, strict=True)
    )
    return cells[np.ix_(rows, columns)]


def averaged_where(seen: NDArray[np.bool_], kept: Tensor, wanted: GridShape) -> Tensor:
    """As ``averaged``, of some cells only.

    Args:
        seen: (h, w) those cells.
        kept: (K, d) their features.
        wanted: grid.

    Returns:
        (C, d) weighted means of the seen cells in reach; zeros where there are none.
    """
    columns = torch.from_numpy(np.flatnonzero(seen)).to(kept.device)
    weighted = torch.nn.functional.pad(kept.float(), (0, 1), value=1.0)
    planes = weighted.new_zeros(seen.size, weighted.shape[1]).index_copy(0, columns, weighted)
    small = averaged(planes, GridShape(*seen.shape), wanted)
    return (small[:, :-1] / small[:, -1:].clamp_min(1e-6)).to(kept.dtype)


def averaged(tokens: Tensor, grid: GridShape, wanted: GridShape) -> Tensor:
    """(C, d) features on one grid -> on one that is no finer, by antialiased linear resampling."""
    if wanted == grid:
        return tokens
    planes = tokens.T.reshape(1, -1, *grid).float()
    small = torch.nn.functional.interpolate(
        planes, size=tuple(wanted), mode="bilinear", align_corners=False, antialias=True
    )
    return small[0].flatten(1).T.to(tokens.dtype)
