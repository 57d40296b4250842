"""What the layers of a model let their columns see: all that came before, in most models.

Some layers look back at a window of tokens only (Mistral, Gemma); in Gemma's, the tokens of an
image also see those of the same image that follow them. Whether images are shown so is the
multimodal model's doing: a text model only says what it was made for.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig


@dataclass(frozen=True)
class AttentionPattern:
    """Which columns a layer's column sees, of those that hold tokens."""

    window: int | None = None
    """Tokens looked back at, the column's own included; None for all of them."""
    whole_images: bool = False
    """Tokens of an image see what follows them in that image, and what comes before as all do."""


CAUSAL = AttentionPattern()
"""All columns up to a column's own."""


def pattern_of(layer: Any) -> AttentionPattern:
    """The pattern of a stock decoder layer that has attention heads, or of a copy of one."""
    attention = layer.self_attn
    config = attention.config
    kinds = getattr(config, "layer_types", None)
    has_window = kinds is None or kinds[attention.layer_idx] == "sliding_attention"
    window = getattr(config, "sliding_window", None) if has_window else None
    return AttentionPattern(window, whole_images=_sees_whole_images(config, window))


def _sees_whole_images(config: PreTrainedConfig, window: int | None) -> bool:
    """Gemma 3's layers all do, of Gemma 4's only those with a window."""
    if config.model_type == "gemma3_text":
        return True
    is_gemma4 = getattr(config, "use_bidirectional_attention", None) == "vision"
    return is_gemma4 and window is not None


def patterns_of(layers: Any) -> set[AttentionPattern]:
    """Those of some layers; layers without attention heads have none."""
    return {pattern_of(layer) for layer in layers if hasattr(layer, "self_attn")}
