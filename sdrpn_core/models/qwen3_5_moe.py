"""Qwen3.5 with experts: layers of either kind choose a few of many networks for every token."""

from transformers import PreTrainedConfig, Qwen3_5MoeTextConfig

from sdrpn_core.models.qwen3_5 import Qwen3_5Adapter


class Qwen3_5MoeAdapter(Qwen3_5Adapter):
    """Adapter of ``Qwen3_5MoeForConditionalGeneration``."""

    defaults = Qwen3_5Adapter.defaults.model_copy(update={"width_per_head": 128})

    @staticmethod
    def usual_text_config(num_layers: int, num_heads: int, hidden_size: int) -> PreTrainedConfig:
        """Every fourth layer has heads; what is left out here is as in Qwen3.5-35B-A3B."""
        return Qwen3_5MoeTextConfig(
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
        )
