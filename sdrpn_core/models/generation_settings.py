"""What of a model's own generation settings its greedy answers follow, and what they leave out."""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

_LEFT_OUT: Mapping[str, Any] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": None,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "sequence_bias": None,
}
"""Settings by which stock answers without sampling differ, with the value that changes nothing."""


def suppressed_tokens(config: GenerationConfig) -> tuple[int, ...]:
    """Tokens that answers never hold (Gemma 4's ends of images and of sound)."""
    return tuple(config.suppress_tokens or ())


def left_out_settings(config: GenerationConfig) -> tuple[str, ...]:
    """Settings that the model's stock answers follow and those here do not, as ``name=value``."""
    values = ((name, getattr(config, name, None), none) for name, none in _LEFT_OUT.items())
    return tuple(
        f"{name}={value}" for name, value, none in values if value is not None and value != none
    )
