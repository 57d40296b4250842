"""Gemma 3: SigLIP tower, one square tile an image, pooled to a fixed grid of 16x16.

The stock processor stretches an image to a square; its "pan and scan", which adds tiles, is off
unless asked for; here the crop takes its place. The tokens of an image see each other in all
decoder layers; five of six look back at a window of tokens, and turn positions otherwise.
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
"""Longer images are padded, as for InternVL: stretched any further, nothing could be read."""


class Gemma3Adapter(LlavaAdapter):
    """Adapter of ``Gemma3ForConditionalGeneration``."""

    defaults = FamilyDefaults(
        prompt=(
            "<bos><start_of_turn>user\n{images}{question}<end_of_turn>\n<start_of_turn>model\n"
        ),
        final_norm=False,
        rotary_scores=True,
        training=TrainingConfig(batch_size=128, learning_rate=1e-4, betas=(0.9, 0.999)),
        head_size=256,
        num_cells=256,
    )

    def letterbox(self, image_size: tuple[int, int], *, for_labels: bool = False) -> Letterbox:
        """The image itself."""
        return Letterbox.limited(image_size, MAX_ASPECT_RATIO)

    def image_placeholder(self) -> str:
        """One image token, between the markers and line breaks that the stock processor writes."""
        config = self.model.config
        ids = [config.boi_token_id, self.image_token_id, config.eoi_token_id]
        return "\n\n" + "".join(self.tokenizer.convert_ids_to_tokens(ids)) + "\n\n"

    def canvas_inputs(self, canvases: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Rescaled and normalised."""
        return processed(
            self.image_processor, canvases, self.dtype, do_resize=False, do_pan_and_scan=False
        )
