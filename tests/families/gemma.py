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
    adapter: ModelAdapter, images: Sequence[Image.Image], for_labels: bool
) -> dict[str, Any]:
    """Cells of each image and their places, padded to the most cells that one has."""
    rule = adapter.profile.images.labels if for_labels else adapter.profile.images.answers
    if isinstance(rule, SquareGrid):
        grey = [padded_to_square(image, (127, 127, 127)) for image in images]
        made = [_cells(square, rule.side**2) for square in grey]
    else:
        assert rule is not None
        made = [_cells(image, rule.max_cells) for image in images]
    cells, places = zip(*made, strict=True)
    longest = max(map(len, cells))
    return {
        "pixel_values": torch.stack(
            [functional.pad(one, (0, 0, 0, longest - len(one))) for one in cells]
        ),
        "image_position_ids": torch.stack(
            [functional.pad(one, (0, 0, 0, longest - len(one)), value=-1) for one in places]
        ),
    }


def _cells(image: Image.Image, max_cells: int) -> tuple[Tensor, Tensor]:
    """(C, pixels) and (C, 2): what transformers' own processor makes for torchvision, by loops."""
    height, width = get_aspect_ratio_preserving_size(
        image.height, image.width, PATCH, max_cells * MERGED**2, MERGED
    )
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) / 255
    side = PATCH * MERGED
    corners = [(x, y) for y in range(0, height, side) for x in range(0, width, side)]
    cells = [pixels[y : y + side, x : x + side].ravel() for x, y in corners]
    places = [(x // side, y // side) for x, y in corners]
    return torch.tensor(np.stack(cells), dtype=torch.float32), torch.tensor(places)


def gemma_grids(adapter: ModelAdapter, inputs: dict[str, Any]) -> list[GridShape]:
    """One more than the largest place."""
    del adapter
    largest = inputs["image_position_ids"].amax(dim=1).tolist()
    return [GridShape(row + 1, column + 1) for column, row in largest]


def gemma_cell_pixels(inputs: dict[str, Any], grid: GridShape) -> Tensor:
    """Cells are in reading order."""
    return inputs["pixel_values"][0].mean(dim=-1).reshape(grid)


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
