"""How the stock Gemma 4 is fed, by the size rule and the processor of transformers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

from data_contracts.profiles import SquareGrid
from sdrpn_core.geometry import GridShape
from sdrpn_core.models.base import ModelAdapter
from tests.families.squares import padded_to_square
from tests.tiny_gemma import MERGED, PATCH


def gemma_images(
    adapter: ModelAdapter,
    images: Sequence[Image.Image],
    for_labels: bool,
    *,
    patches_a_side: int,
) -> dict[str, Any]:
    """Pieces of each image and their places, padded to the most that one has.

    Args:
        adapter: gives the rules of grids.
        images: of any sizes.
        for_labels: on the grid of extraction and training.
        patches_a_side: of a piece: those of a cell for Gemma 4 12B, one for a tower.
    """
    side = PATCH * patches_a_side
    rule = adapter.profile.images.labels if for_labels else adapter.profile.images.answers
    if isinstance(rule, SquareGrid):
        grey = [padded_to_square(image, (127, 127, 127)) for image in images]
        made = [_pieces(square, rule.side**2, side) for square in grey]
    else:
        assert rule is not None
        made = [_pieces(image, rule.max_cells, side) for image in images]
    pieces, places = zip(*made, strict=True)
    longest = max(map(len, pieces))
    return {
        "pixel_values": torch.stack(
            [functional.pad(one, (0, 0, 0, longest - len(one))) for one in pieces]
        ),
        "image_position_ids": torch.stack(
            [functional.pad(one, (0, 0, 0, longest - len(one)), value=-1) for one in places]
        ),
    }


def _pieces(image: Image.Image, max_cells: int, side: int) -> tuple[Tensor, Tensor]:
    """(P, pixels) and (P, 2): what transformers' own processors make for torchvision, by loops."""
    height, width = get_aspect_ratio_preserving_size(
        image.height, image.width, PATCH, max_cells * MERGED**2, MERGED
    )
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) / 255
    corners = [(x, y) for y in range(0, height, side) for x in range(0, width, side)]
    pieces = [pixels[y : y + side, x : x + side].ravel() for x, y in corners]
    places = [(x // side, y // side) for x, y in corners]
    return torch.tensor(np.stack(pieces), dtype=torch.float32), torch.tensor(places)


def gemma_grids(
    adapter: ModelAdapter, inputs: dict[str, Any], *, pieces_a_side: int
) -> list[GridShape]:
    """One more than the largest place, in cells of so many pieces a side."""
    del adapter
    ends = (inputs["image_position_ids"].amax(dim=1) + 1) // pieces_a_side
    return [GridShape(rows, columns) for columns, rows in ends.tolist()]


def gemma_cell_pixels(inputs: dict[str, Any], grid: GridShape, *, pieces_a_side: int) -> Tensor:
    """Pieces are in reading order."""
    count = pieces_a_side
    pieces = inputs["pixel_values"][0].mean(dim=-1)
    return pieces.view(grid.height, count, grid.width, count).mean(dim=(1, 3))


def gemma_masks(stock: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """What the stock model makes for caches of fixed size: images are seen whole within windows.

    Its forward pass, left alone, lets layers without a window see images whole too, and windows not
    end within them, in this version of transformers. Gemma 4 was not trained so
    (huggingface/transformers#46850), and the larger Gemmas' stock classes do not do it.
    """
    ids = inputs["input_ids"]
    masks: dict[str, Tensor] = stock.create_masks_for_generate(
        stock.config,
        torch.empty(*ids.shape, 0),
        inputs["attention_mask"],
        None,  # no cache: the argument has another name since transformers 5.24
        None,  # positions count from zero
        mm_token_type_ids=inputs["mm_token_type_ids"],
    )
    return masks
