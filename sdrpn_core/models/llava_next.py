"""LLaVA-NeXT (LLaVA-1.6), Granite Vision: one square tile an image, fixed grid, a newline behind.

The tower is CLIP's, Granite Vision's SigLIP's. The stock processor shows an image as one tile,
stretched to a square, and then as more that are cut out of it. Here the first is all there is: what
the others are for, a crop does.
"""

from collections.abc import Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor

from data_contracts.profiles import FamilyDefaults
from sdrpn_core.models.images import processed
from sdrpn_core.models.newline import NewlineAdapter
from sdrpn_core.models.stretched import StretchedAdapter


class LlavaNextAdapter(NewlineAdapter, StretchedAdapter):
    """Adapter of ``LlavaNextForConditionalGeneration``."""

    # The decoder is Llama's, Mistral's or Granite's, so its RPN is made and trained as LLaVA's.
    defaults = FamilyDefaults(prompt="[INST] {images}\n{question} [/INST]")
    masks_tower = True

    def canvas_inputs(self, canvases: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Rescaled and normalised: the first tile, beside the least that the processor cuts."""
        inputs = processed(
            self.image_processor,
            canvases,
            self.dtype,
            do_resize=False,
            do_center_crop=False,
            image_grid_pinpoints=[[self.input_side, self.input_side]],
        )
        return {"pixel_values": inputs["pixel_values"][:, 0]}

    def _encode_pixels(self, pixels: Tensor) -> Iterable[Tensor]:
        """As the stock model encodes each tile; it takes none without the others."""
        model, config = self.model.model, self.model.config
        depths = config.vision_feature_layer
        states = model.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        wanted = [depths] if isinstance(depths, int) else depths
        cells = torch.cat([states[depth] for depth in wanted], dim=-1)
        if config.vision_feature_select_strategy == "default":
            cells = cells[:, 1:]  # without the class token
        tokens: Iterable[Tensor] = model.multi_modal_projector(cells)
        return tokens
