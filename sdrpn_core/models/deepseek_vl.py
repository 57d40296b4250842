"""DeepSeek-VL 1.3B: one SigLIP tower, square letterbox, fixed 24x24 grid.

The hub's processor resizes the longer side and then pads, with both sizes rounded to pixels. The
letterbox pads first: on square images the two agree to the last bit, on others the content lies
where the letterbox says, not up to a pixel beside it.
"""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from data_contracts.profiles import FamilyDefaults
from sdrpn_core.models.images import processed
from sdrpn_core.models.masked_tower import PatchTower
from sdrpn_core.models.square import SquareAdapter

SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language.\n\n"
)
DEEPSEEK_PROMPT = SYSTEM + "User: {images}{question}\n\nAssistant:"
"""As the chat template of the hub's models puts it; the tokenizer adds the start token."""


class DeepseekVlAdapter(SquareAdapter):
    """Adapter of ``DeepseekVLForConditionalGeneration``."""

    defaults = FamilyDefaults(prompt=DEEPSEEK_PROMPT)
    masks_tower = True

    def default_fill(self) -> tuple[int, int, int]:
        """The colour that the image processor itself pads with."""
        red, green, blue = self.image_processor.background_color
        return red, green, blue

    def canvas_inputs(self, canvases: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Rescaled and normalised."""
        return processed(self.image_processor, canvases, self.dtype, do_resize=False, do_pad=False)

    def encode_inputs(self, inputs: dict[str, Tensor]) -> Tensor:
        """Run the tower."""
        features = self.model.model.get_image_features(
            pixel_values=inputs["pixel_values"].to(self.device), return_dict=True
        )
        tokens: Tensor = features.pooler_output
        return tokens

    def patch_tower(self) -> PatchTower | None:
        """The last layer, its norm, and the aligner."""
        model = self.model.model
        norm = model.vision_model.post_layernorm
        return PatchTower(model.vision_model, [-1], lambda states: model.aligner(norm(states)))
