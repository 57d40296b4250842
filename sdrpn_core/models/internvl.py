"""InternVL3, 3.5, Qianfan-OCR: InternViT tower, one square tile an image, four patches a token."""

from data_contracts.profiles import FamilyDefaults
from data_contracts.training import QWEN_TRAINING
from sdrpn_core.models.stretched import StretchedAdapter


class InternVlAdapter(StretchedAdapter):
    """Of ``InternVLForConditionalGeneration`` and ``QianfanOCRForConditionalGeneration``."""

    # The decoder is Qwen's, so its RPN is made and trained as Qwen2.5-VL's.
    defaults = FamilyDefaults(
        prompt="<|im_start|>user\n{images}{question}<|im_end|>\n<|im_start|>assistant\n",
        final_norm=False,
        rotary_scores=True,
        training=QWEN_TRAINING,
        num_cells=256,
    )
    one_tile = {"crop_to_patches": False}
    image_text = "<img>{token}</img>\n"
