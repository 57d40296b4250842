"""DeepSeek-VL 7B: a SigLIP and a SAM tower on one letterboxed canvas, fixed 24x24 grid.

The canvas has the SAM tower's size; SigLIP gets the same canvas made smaller by the hub's
processor, so that both towers, whose features are joined cell by cell, see the same geometry.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from data_contracts.profiles import FamilyDefaults
from sdrpn_core.models.deepseek_vl import DEEPSEEK_PROMPT
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.images import processed
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.models.square import SquareAdapter

_CANVASES_AT_ONCE = 4
"""SAM attends over all 64 x 64 patches: a whole batch would not fit beside a 7B model."""


class DeepseekVlHybridAdapter(SquareAdapter):
    """Adapter of ``DeepseekVLHybridForConditionalGeneration``."""

    defaults = FamilyDefaults(prompt=DEEPSEEK_PROMPT)

    def set_up(self) -> None:
        """As of one tower, and the sides of the two."""
        super().set_up()
        wanted = (self.input_side, int(self.model.config.high_res_vision_config.image_size))
        processor = self.image_processor
        found = (processor.size["height"], processor.high_res_size["height"])
        if found != wanted:
            raise ModelError(
                f"profile {self.profile.name!r}: the image processor makes canvases of {found[0]} "
                f"and {found[1]} pixels, the towers take {wanted[0]} and {wanted[1]}: "
                "use the preprocessor_config.json that belongs to the model"
            )
        self.low_side, self.input_side = wanted
        self.resample = Image.Resampling(processor.high_res_resample)

    def default_fill(self) -> tuple[int, int, int]:
        """The colour that the image processor pads with before either tower's resizing."""
        red, green, blue = self.image_processor.high_res_background_color
        return red, green, blue

    def pixels_seen(self, image: ImageFeatures) -> tuple[int, int]:
        """The SigLIP tower's side: only up to there have both towers seen every pixel.

        SAM gets more, but what it makes of them is pooled into the cells of SigLIP's grid (24 x 24,
        of 42 pixels' side each): small print is lost that a crop shows.
        """
        del image
        return self.low_side, self.low_side

    def canvas_inputs(self, canvases: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Each canvas scaled for both towers and normalised.

        Canvases have the final size already: the processor's own resize and padding do nothing to
        the high resolution, and give the low one from it as in training.
        """
        return processed(self.image_processor, canvases, self.dtype)

    def encode_inputs(self, inputs: dict[str, Tensor]) -> Tensor:
        """Run both towers over a few canvases at a time."""
        few = zip(
            torch.split(inputs["pixel_values"], _CANVASES_AT_ONCE),
            torch.split(inputs["high_res_pixel_values"], _CANVASES_AT_ONCE),
            strict=True,
        )
        return torch.cat([self._encode_few(low, high) for low, high in few])

    def _encode_few(self, low: Tensor, high: Tensor) -> Tensor:
        features = self.model.model.get_image_features(
            pixel_values=low.to(self.device),
            high_res_pixel_values=high.to(self.device),
            return_dict=True,
        )
        tokens: Tensor = features.pooler_output
        return tokens
