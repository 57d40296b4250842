"""LLaVA-1.5 family: CLIP tower, square letterbox, fixed grid.

LLaVA-1.5 was trained on images padded to a square with the processor's mean colour. The hub's
processor centre-crops by default and would cut content off; here the letterbox does the geometry
and the processor only rescales and normalises.
"""

from collections.abc import Iterable, Sequence

from PIL import Image
from torch import Tensor

from data_contracts.profiles import FamilyDefaults
from sdrpn_core.models.images import mean_colour, processed
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.models.square import SquareAdapter


class LlavaAdapter(SquareAdapter):
    """Adapter of ``LlavaForConditionalGeneration``."""

    defaults = FamilyDefaults(prompt="USER: {images}\n{question} ASSISTANT:")

    def default_fill(self) -> tuple[int, int, int]:
        """The processor's mean colour."""
        return mean_colour(self.image_processor)

    def encode_canvases(self, canvases: Sequence[Image.Image], **resized: bool) -> Iterable[Tensor]:
        """Rescale, normalise and encode."""
        return self._encode_pixels(self._pixels(canvases), **resized)

    def encode_with_gradient(self, image: Image.Image) -> tuple[Tensor, ImageFeatures]:
        """As ``encode_images`` does, one image at a time."""
        letterbox = self.letterbox(image.size)
        canvas = letterbox.paste(image, self.fill, (self.input_side, self.input_side))
        pixels = self._pixels([canvas]).requires_grad_()
        (tokens,) = self._encode_pixels(pixels)
        return pixels, ImageFeatures(tokens=tokens, grid=self.grid, letterbox=letterbox)

    def _pixels(self, canvases: Sequence[Image.Image]) -> Tensor:
        """(N, 3, side, side) normalised."""
        batch = processed(self.image_processor, canvases, do_resize=False, do_center_crop=False)
        return batch["pixel_values"].to(self.device, self.dtype)

    def _encode_pixels(self, pixels: Tensor, **resized: bool) -> Iterable[Tensor]:
        features = self.model.get_image_features(pixel_values=pixels, return_dict=True, **resized)
        tokens: Iterable[Tensor] = features.pooler_output
        return tokens
