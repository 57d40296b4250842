"""GLM-4.5V and GLM-4.6V: as GLM-4.1V, layers behind the first choose a few of many experts."""

from transformers import Glm4vMoeTextConfig, PreTrainedConfig

from sdrpn_core.models.glm4v import Glm4vAdapter


class Glm4vMoeAdapter(Glm4vAdapter):
    """Adapter of ``Glm4vMoeForConditionalGeneration``."""

    @staticmethod
    def usual_text_config(num_layers: int, num_heads: int, hidden_size: int) -> PreTrainedConfig:
        """What is left out here is as in GLM-4.5V, whose width its 96 heads do not divide."""
        del hidden_size
        return Glm4vMoeTextConfig(
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            head_dim=128,
        )
