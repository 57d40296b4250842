"""What of a model's own generation settings its greedy answers follow, and what they leave out."""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from sdrpn_core.models.errors import ModelError

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


def check_tokens(config: GenerationConfig, num_tokens: int, model_id: str) -> None:
    """Refuse settings of another vocabulary.

    Args:
        config: the model's.
        num_tokens: size of its vocabulary.
        model_id: for messages.

    Raises:
        ModelError: if no token that ends an answer, or not every token that answers may not hold,
            is in the vocabulary.
    """
    eos = config.eos_token_id
    ends = [eos] if isinstance(eos, int) else eos or []
    unknown = [token for token in suppressed_tokens(config) if token >= num_tokens]
    if ends and min(ends) >= num_tokens:
        unknown += ends
    if unknown:
        raise ModelError(
            f"model {model_id!r}: its generation_config.json names token {unknown[0]}, and its "
            f"vocabulary has {num_tokens}: take the file that belongs to these weights"
        )


def left_out_settings(config: GenerationConfig) -> tuple[str, ...]:
    """Settings that the model's stock answers follow and those here do not, as ``name=value``."""
    values = ((name, getattr(config, name, None), none) for name, none in _LEFT_OUT.items())
    return tuple(
        f"{name}={value}" for name, value, none in values if value is not None and value != none
    )
