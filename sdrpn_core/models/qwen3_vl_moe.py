"""Qwen3-VL with experts: its layers choose a few of many feed-forward networks for every token."""

from transformers import PreTrainedConfig, Qwen3VLMoeTextConfig

from sdrpn_core.models.qwen3_vl import Qwen3VlAdapter


class Qwen3VlMoeAdapter(Qwen3VlAdapter):
    """Adapter of ``Qwen3VLMoeForConditionalGeneration``."""

    defaults = Qwen3VlAdapter.defaults.model_copy(update={"width_per_head": 64})

    @staticmethod
    def usual_text_config(num_layers: int, num_heads: int, hidden_size: int) -> PreTrainedConfig:
        """Heads are twice as wide as their share of the hidden size, four of keys for all."""
        return Qwen3VLMoeTextConfig(
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=4,
            head_dim=128,
        )
