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
from sdrpn_core.models.masked_tower import PatchTower
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.models.square import SquareAdapter


class LlavaAdapter(SquareAdapter):
    """Adapter of ``LlavaForConditionalGeneration``."""

    defaults = FamilyDefaults(prompt="USER: {images}\n{question} ASSISTANT:")
    masks_tower = True
    gives_gradients = True

    def default_fill(self) -> tuple[int, int, int]:
        """The processor's mean colour."""
        return mean_colour(self.image_processor)

    def canvas_inputs(self, canvases: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Rescaled and normalised."""
        return processed(
            self.image_processor, canvases, self.dtype, do_resize=False, do_center_crop=False
        )

    def encode_inputs(self, inputs: dict[str, Tensor]) -> Iterable[Tensor]:
        """Run the tower."""
        return self._encode_pixels(inputs["pixel_values"].to(self.device))

    def patch_tower(self) -> PatchTower | None:
        """The layers that the configuration names, then the projector."""
        model, wanted = self.model.model, self.model.config.vision_feature_layer
        depths = [wanted] if isinstance(wanted, int) else wanted
        return PatchTower(model.vision_tower, depths, model.multi_modal_projector)

    def encode_with_gradient(self, image: Image.Image) -> tuple[Tensor, ImageFeatures]:
        """As ``encode_images`` does, one image at a time."""
        prepared = self.prepare_images([image])
        pixels = prepared.inputs["pixel_values"].to(self.device).requires_grad_()
        (cells,) = self._encode_pixels(pixels)
        return pixels, self.image_features(cells, self.grid, prepared.letterboxes[0])

    def _encode_pixels(self, pixels: Tensor) -> Iterable[Tensor]:
        features = self.model.get_image_features(pixel_values=pixels, return_dict=True)
        tokens: Iterable[Tensor] = features.pooler_output
        return tokens
