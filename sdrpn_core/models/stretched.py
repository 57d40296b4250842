"""What families share that see an image as one tile: stretched to a square, not padded.

Their stock processors may cut an image into several tiles, each with tokens of its own. Here an
image is one tile, made as those processors make theirs; the fine print that this costs comes back
with the crop, where it is needed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from sdrpn_core.geometry import Letterbox
from sdrpn_core.models.images import processed
from sdrpn_core.models.llava import LlavaAdapter

MAX_ASPECT_RATIO = 12.0
"""Longer images are padded: of twelve tiles in a row, InternVL's processor stretches none more."""


class StretchedAdapter(LlavaAdapter):
    """A family that sees each image as one square tile."""

    masks_tower = False  # several patches make a token
    one_tile: ClassVar[Mapping[str, Any]]
    """Settings by which the stock processor makes one tile of an image."""

    def letterbox(self, image_size: tuple[int, int], *, for_labels: bool = False) -> Letterbox:
        """The image itself."""
        return Letterbox.limited(image_size, MAX_ASPECT_RATIO)

    def canvas_inputs(self, canvases: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Rescaled and normalised."""
        return processed(
            self.image_processor, canvases, self.dtype, do_resize=False, **self.one_tile
        )
