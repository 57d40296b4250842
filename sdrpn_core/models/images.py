"""What adapters of several families do to images before their vision tower sees them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.threads import in_threads


@dataclass(frozen=True)
class PreparedImages:
    """Images ready for the vision tower, still on the host."""

    letterboxes: tuple[Letterbox, ...]
    grids: tuple[GridShape, ...]
    inputs: dict[str, Tensor]
    """What the stock image processor makes of the canvases, as precise as the tower takes it."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Images prepared one by one, at least one, as if they had been prepared together."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            letterboxes=tuple(box for part in parts for box in part.letterboxes),
            grids=tuple(grid for part in parts for grid in part.grids),
            inputs={
                name: torch.cat([part.inputs[name] for part in parts]) for name in parts[0].inputs
            },
        )

    def encoded(
        self, tokens: Iterable[Tensor], deepstack: Iterable[tuple[Tensor, ...]] | None = None
    ) -> list[ImageFeatures]:
        """The images as the decoder sees them, of the (C, d) tokens and the levels of each."""
        levels = [()] * len(self.grids) if deepstack is None else deepstack
        parts = zip(tokens, self.grids, self.letterboxes, levels, strict=True)
        return [ImageFeatures(*part) for part in parts]


def mean_colour(image_processor: BaseImageProcessor) -> tuple[int, int, int]:
    """The processor's mean as an 8-bit colour: padding that normalises to about zero."""
    red, green, blue = (round(255 * mean) for mean in image_processor.image_mean)
    return red, green, blue


def paste_all(
    letterboxes: Sequence[Letterbox],
    images: Sequence[Image.Image],
    fill: tuple[int, int, int],
    sizes: Sequence[tuple[int, int]],
    resample: Image.Resampling,
) -> list[Image.Image]:
    """The canvas of each image, several at a time; arguments as of ``Letterbox.paste``."""
    return in_threads(
        lambda item: item[0].paste(item[1], fill, item[2], resample),
        zip(letterboxes, images, sizes, strict=True),
    )


def processed(
    image_processor: BaseImageProcessor,
    canvases: Sequence[Image.Image | list[Image.Image]],
    dtype: torch.dtype,
    **settings: Any,
) -> dict[str, Tensor]:
    """What the stock processor makes of some canvases, several at a time.

    Args:
        image_processor: the model's.
        canvases: at least one; a list in the place of one is those of a prompt.
        dtype: of the pixels.
        settings: of the processor's call.

    Returns:
        Its tensors, those of all canvases one after the other.
    """
    found = in_threads(
        lambda canvas: image_processor([canvas], return_tensors="pt", **settings), canvases
    )
    return {name: torch.cat([_cast(one[name], dtype) for one in found]) for name in found[0]}


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixels in some precision; sizes as they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
