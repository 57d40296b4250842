"""Aya Vision: SigLIP tower, one square tile an image, four patches a token, Cohere's decoder.

Three layers of four see a window and turn queries and keys, the fourth sees all and turns nothing.
"""

from data_contracts.profiles import FamilyDefaults
from data_contracts.training import QWEN_TRAINING
from sdrpn_core.models.stretched import StretchedAdapter


class AyaVisionAdapter(StretchedAdapter):
    """Adapter of ``AyaVisionForConditionalGeneration``."""

    defaults = FamilyDefaults(
        prompt=(
            "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>{images}{question}"
            "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
        ),
        final_norm=False,
        rotary_scores=True,
        training=QWEN_TRAINING,
        num_cells=169,
    )
    one_tile = {"crop_to_patches": False}
    image_text = "<|START_OF_IMG|>TILE_GLOBAL{token}<|END_OF_IMG|>"  # of a tile that shows all
