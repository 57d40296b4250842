"""Gemma 3: SigLIP tower, one square tile an image, pooled to a fixed grid of 16x16.

The tokens of an image see each other in all decoder layers; five of six look back at a window of
tokens only, and turn positions otherwise.
"""

from data_contracts.profiles import FamilyDefaults
from data_contracts.training import QWEN_TRAINING
from sdrpn_core.models.gemma import marked_image_token
from sdrpn_core.models.stretched import StretchedAdapter


class Gemma3Adapter(StretchedAdapter):
    """Adapter of ``Gemma3ForConditionalGeneration``."""

    defaults = FamilyDefaults(
        prompt=(
            "<bos><start_of_turn>user\n{images}{question}<end_of_turn>\n<start_of_turn>model\n"
        ),
        final_norm=False,
        rotary_scores=True,
        training=QWEN_TRAINING,
        width_per_head=240,
        num_cells=256,
    )
    one_tile = {"do_pan_and_scan": False}
    shows_images_whole = True

    def image_placeholder(self) -> str:
        """One image token, between the markers and line breaks that the stock processor writes."""
        return f"\n\n{marked_image_token(self)}\n\n"
