"""Janus and Janus-Pro, asked about images: as DeepSeek-VL 1.3B, but for tower and markers.

What makes images of tokens has no part in answers, and is only loaded.
"""

from data_contracts.profiles import FamilyDefaults
from sdrpn_core.models.deepseek_vl import SYSTEM, DeepseekVlAdapter


class JanusAdapter(DeepseekVlAdapter):
    """Adapter of ``JanusForConditionalGeneration``."""

    # As processor and chat template of the hub's models put it.
    defaults = FamilyDefaults(prompt=SYSTEM + "<|User|>: {images}\n{question}\n\n<|Assistant|>:")
    masks_tower = False  # its tower is of a class of its own
    image_text = "<begin_of_image>{token}<end_of_image>"
