"""Qwen3.5: Qwen3-VL's tower, tapped at its end only, before a decoder of mixed layers.

Three layers of four hand on a state and have no heads (``decoding/recurrent_layers.py``); attention
is read, and the RPN scores, in the fourth.
"""

from sdrpn_core.models.qwen2_5_vl import Qwen2_5VlAdapter


class Qwen3_5Adapter(Qwen2_5VlAdapter):
    """Adapter of ``Qwen3_5ForConditionalGeneration``."""

    # The image first, as SD-RPN's authors ask it; then, as the chat template does where it is asked
    # for no thinking, a thought that is over.
    defaults = Qwen2_5VlAdapter.defaults.model_copy(
        update={
            "prompt": (
                "<|im_start|>user\n{images}{question}<|im_end|>\n"
                "<|im_start|>assistant\n<think>\n\n</think>\n\n"
            ),
            "width_per_head": 200,
        }
    )
