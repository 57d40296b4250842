"""InternVL3 and 3.5: InternViT tower, one square tile an image, four patches a token.

The stock processor may cut an image into up to twelve tiles, each with 256 tokens of its own. Here
an image is one tile, made as that processor makes its tiles: stretched to a square, not padded. The
fine print that this costs comes back with the crop, where it is needed.
"""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from data_contracts.profiles import FamilyDefaults
from data_contracts.training import TrainingConfig
from sdrpn_core.geometry import Letterbox
from sdrpn_core.models.images import processed
from sdrpn_core.models.llava import LlavaAdapter

MAX_ASPECT_RATIO = 12.0
"""Longer images are padded: of twelve tiles in a row, the stock processor stretches none more."""


class InternVlAdapter(LlavaAdapter):
    """Adapter of ``InternVLForConditionalGeneration``."""

    # The decoder is Qwen's, so its RPN is made and trained as Qwen2.5-VL's.
    defaults = FamilyDefaults(
        prompt="<|im_start|>user\n{images}{question}<|im_end|>\n<|im_start|>assistant\n",
        final_norm=False,
        rotary_scores=True,
        training=TrainingConfig(batch_size=128, learning_rate=1e-4, betas=(0.9, 0.999)),
        num_cells=256,
    )

    def letterbox(self, image_size: tuple[int, int], *, for_labels: bool = False) -> Letterbox:
        """The image itself."""
        return Letterbox.limited(image_size, MAX_ASPECT_RATIO)

    def image_placeholder(self) -> str:
        """One image token, between the markers and before the line break that the chat template
        and the stock processor write."""
        return f"<img>{super().image_placeholder()}</img>\n"

    def canvas_inputs(self, canvases: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Rescaled and normalised."""
        return processed(
            self.image_processor, canvases, self.dtype, do_resize=False, crop_to_patches=False
        )
