"""North Micro Vision: Qwen3-VL's tower with deepstack features, before Cohere's decoder.

Three layers of four see a window and turn queries and keys, the fourth sees all and turns nothing.
"""

from transformers import CohereCompassTextConfig, PreTrainedConfig

from sdrpn_core.models.qwen3_vl import Qwen3VlAdapter


class CohereCompassAdapter(Qwen3VlAdapter):
    """Adapter of ``CohereCompassForConditionalGeneration``."""

    defaults = Qwen3VlAdapter.defaults.model_copy(
        update={
            "prompt": (
                "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>{images}{question}"
                "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
            )
        }
    )
    image_text = "<|VISION_START|><|IMAGE_PAD|><|VISION_END|>"

    @staticmethod
    def usual_text_config(num_layers: int, num_heads: int, hidden_size: int) -> PreTrainedConfig:
        """What is left out here is as in North Micro Vision: two heads share keys."""
        window, full = "sliding_attention", "full_attention"
        return CohereCompassTextConfig(
            layer_types=[full if layer % 4 == 3 else window for layer in range(num_layers)],
            rope_parameters={window: {"rope_type": "default", "rope_theta": 1e4}, full: None},
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_heads // 2,
        )
