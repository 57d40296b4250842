"""What families share that take grids of any size: the rule of the grid is the profile's.

A square grid of fixed size letterboxes every image; a dynamic one follows the image's shape.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from PIL import Image
from torch import Tensor

from data_contracts.profiles import DynamicGrid, GridRule, SquareGrid
from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.images import PreparedImages, mean_colour, paste_all
from sdrpn_core.models.prompts import ImageFeatures

MAX_ASPECT_RATIO = 100.0
"""Longer images are padded: Qwen's stock processor refuses a ratio above 200. So are those that all
the cells in a row could not show."""


class DynamicAdapter(ModelAdapter):
    """A family whose images become grids of the shape and size that the profile's rules give."""

    cell_side: int
    """Of a cell of the grid, in pixels of the canvas."""
    breaks_a_row: ClassVar[int] = 0
    """Tokens behind every row of cells."""
    max_side: float = math.inf
    """Most cells of a row or a column that the tower takes."""

    def set_up(self) -> None:
        """The rules of the grids; ``cell_side`` is known before."""
        images = self.profile.images
        if images.labels is None or images.answers is None:
            raise ModelError(
                f"profile {self.profile.name!r} gives no grid rule: set images.labels and "
                f"images.answers, {self.profile.family} models take grids of any size"
            )
        self.label_grid: GridRule = images.labels
        self.answer_grid: GridRule = images.answers
        self.input_side = self._side(self.answer_grid) * self.cell_side
        self.fill = images.fill or mean_colour(self.image_processor)
        for rule in (self.label_grid, self.answer_grid):
            self._check_side(rule)

    @abstractmethod
    def canvas_inputs(
        self, canvases: Sequence[Image.Image], grids: Sequence[GridShape]
    ) -> dict[str, Tensor]:
        """What the tower gets of canvases of as many pixels as the cells of these grids have."""

    def draw(
        self,
        images: Sequence[Image.Image],
        letterboxes: Sequence[Letterbox],
        grids: Sequence[GridShape],
    ) -> PreparedImages:
        """Draw canvases that these grids divide evenly, and prepare them."""
        sizes = [(grid.width * self.cell_side, grid.height * self.cell_side) for grid in grids]
        canvases = paste_all(letterboxes, images, self.fill, sizes, self.resample)
        inputs = self.canvas_inputs(canvases, grids)
        return PreparedImages(tuple(letterboxes), tuple(grids), inputs)

    def letterbox(self, image_size: tuple[int, int], *, for_labels: bool = False) -> Letterbox:
        """Centred on a square of the longer side, or the image itself on a dynamic grid."""
        rule = self._rule(for_labels)
        if isinstance(rule, SquareGrid):
            return Letterbox.square(image_size)
        return Letterbox.limited(image_size, min(MAX_ASPECT_RATIO, rule.max_cells))

    def pixels_seen(self, image: ImageFeatures) -> tuple[int, int]:
        """The size that this image's canvas was resized to."""
        return image.grid.width * self.cell_side, image.grid.height * self.cell_side

    def prepare_images(
        self, images: Sequence[Image.Image], *, for_labels: bool = False
    ) -> PreparedImages:
        """On a grid of the rule's side, or of the image's shape and as many cells as allowed."""
        rule = self._rule(for_labels)
        letterboxes = [self.letterbox(image.size, for_labels=for_labels) for image in images]
        if isinstance(rule, DynamicGrid):
            return self.prepare_free(images, letterboxes, rule)
        return self.draw(images, letterboxes, [GridShape(rule.side, rule.side)] * len(images))

    def prepare_free(
        self, images: Sequence[Image.Image], letterboxes: Sequence[Letterbox], rule: DynamicGrid
    ) -> PreparedImages:
        """On grids of the images' shapes. Families whose stock processor rounds otherwise override
        this."""
        grids = [self._grid_within(box, rule) for box in letterboxes]
        return self.draw(images, letterboxes, grids)

    @classmethod
    def num_tokens(cls, grid: GridShape) -> int:
        """Those of every row, with what ends it."""
        return grid.height * (grid.width + cls.breaks_a_row)

    def prepare_crops(
        self, crops: Sequence[Image.Image], max_tokens: int | None = None
    ) -> PreparedImages:
        """With a budget, crops are drawn smaller: cheaper in tower and decoder alike, and coarser.

        They keep their shape, and never take more tokens than the budget.
        """
        self.check_crop_tokens(max_tokens)
        if max_tokens is None:
            return self.prepare_images(crops)
        letterboxes = [self._budget_letterbox(crop.size, max_tokens) for crop in crops]
        grids = [self._grid_within(box, self.answer_grid, max_tokens) for box in letterboxes]
        return self.draw(crops, letterboxes, grids)

    def _budget_letterbox(self, crop_size: tuple[int, int], max_tokens: int) -> Letterbox:
        """As of an image, but no longer than all the budget's cells in a column."""
        if isinstance(self.answer_grid, SquareGrid):
            return self.letterbox(crop_size)
        most_rows = max_tokens / (1 + self.breaks_a_row)
        most = min(MAX_ASPECT_RATIO, most_rows, self.answer_grid.max_cells)
        return Letterbox.limited(crop_size, most)

    def _grid_within(
        self, letterbox: Letterbox, rule: GridRule, max_tokens: float = math.inf
    ) -> GridShape:
        """The canvas's shape in as many cells as the rule asks for, in at most ``max_tokens``."""
        width = letterbox.canvas_width / self.cell_side
        height = letterbox.canvas_height / self.cell_side
        scale = self.scale_of(width, height, rule, max_tokens)
        # Rounded down, so that the product stays within; a hair more, for what is whole already.
        rows, columns = (max(math.floor(side * scale + 1e-6), 1) for side in (height, width))
        return GridShape(rows, columns)

    def scale_of(
        self, width: float, height: float, rule: GridRule, max_tokens: float = math.inf
    ) -> float:
        """What a canvas is resized by.

        Args:
            width: of the canvas, in cells.
            height: the same.
            rule: how many cells it is to have.
            max_tokens: what its cells and breaks may be together.
        """
        least, most = self._cell_bounds(rule)
        num_cells = min(max(width * height, least), most)
        # Solves height * scale * (width * scale + breaks) = max_tokens.
        half = self.breaks_a_row / (2 * width)
        within = math.sqrt(max_tokens / (width * height) + half**2) - half
        longest = self.max_side / max(width, height)
        return min(math.sqrt(num_cells / (width * height)), within, longest)

    @staticmethod
    def _cell_bounds(rule: GridRule) -> tuple[int, int]:
        """Fewest and most cells of an image."""
        if isinstance(rule, SquareGrid):
            return rule.side**2, rule.side**2
        return rule.min_cells, rule.max_cells

    def check_cells(self, found: tuple[int, int], wanted: tuple[int, int]) -> None:
        """Refuse an image processor of another model.

        Args:
            found: pixels of a patch's side, and patches of a cell's, of the image processor.
            wanted: the same of the model.

        Raises:
            ModelError: naming both.
        """
        if found != wanted:
            raise ModelError(
                f"the image processor of {self.profile.model_id!r} cuts patches of {found[0]} "
                f"pixels merged {found[1]} x {found[1]}, the model wants {wanted[0]} merged "
                f"{wanted[1]} x {wanted[1]}: load both from the same repository"
            )

    def _check_side(self, rule: GridRule) -> None:
        """Refuse a square grid that is larger than the tower takes: answers' after training, else.

        Raises:
            ModelError: naming both sides.
        """
        if isinstance(rule, SquareGrid) and rule.side > self.max_side:
            raise ModelError(
                f"profile {self.profile.name!r} gives a square grid of {rule.side} cells a side, "
                f"and the model's tower takes {self.max_side}: lower side in images"
            )

    def _rule(self, for_labels: bool) -> GridRule:
        return self.label_grid if for_labels else self.answer_grid

    @staticmethod
    def _side(rule: GridRule) -> int:
        return rule.side if isinstance(rule, SquareGrid) else round(math.sqrt(rule.max_cells))
