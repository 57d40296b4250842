"""The repetition penalty that some models' generation settings ask for (Qwen-VL's: 1.05).

Greedy decoding applies it as transformers' ``generate`` does: logits of tokens that the prompt or
the answer holds already are divided by the penalty, negative ones multiplied (arXiv 1909.05858).

Shape legend: N batch, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdrpn_core.models.base import ModelAdapter


def tokens_of_prompts(adapter: ModelAdapter, token_ids: Sequence[Sequence[int]]) -> Tensor | None:
    """(N, V) True for the tokens that each prompt holds, on the host; None without a penalty.

    Args:
        adapter: the model.
        token_ids: tokens of each prompt, in any order.
    """
    if adapter.repetition_penalty == 1:
        return None
    held = torch.zeros(len(token_ids), adapter.decoder.vocabulary_size, dtype=torch.bool)
    for row, ids in zip(held, token_ids, strict=True):
        row[list(ids)] = True
    return held


class TokenChooser:
    """Chooses the most likely token of every row, step by step."""

    def __init__(self, held: Tensor | None, penalty: float, device: torch.device) -> None:
        """Prepare.

        Args:
            held: (N, V) tokens that the prompts hold, left as they are; None for no penalty.
            penalty: divisor of the logits of tokens that are held.
            device: of the logits.
        """
        self._held = None if held is None else held.to(device, copy=True)
        self._penalty = penalty

    def choose(self, logits: Tensor) -> Tensor:
        """(N, V) logits of a step -> (N,) tokens, held from then on; never waits for the device."""
        if self._held is None:
            return logits.argmax(dim=-1)
        lower = torch.where(logits < 0, logits * self._penalty, logits / self._penalty)
        tokens = torch.where(self._held, lower, logits).argmax(dim=-1)
        self._held.scatter_(1, tokens[:, None], value=True)
        return tokens
