"""Answers compared with those that the stock class generates from the stock processors' inputs."""

from typing import Any

import torch

from sdrpn_core.generation.greedy import greedy_decode, prefill
from sdrpn_core.generation.prompt_batch import pad_left
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import Prompt


def check_generates_as_stock(
    adapter: ModelAdapter, prompt: Prompt, text: str, pixels: dict[str, Any]
) -> None:
    """Tokens and first logits of an answer.

    Args:
        adapter: the model.
        prompt: as the adapter makes it.
        text: the same prompt as the stock tokenizer wants it, a placeholder for every cell.
        pixels: the same images as the stock processor makes them.
    """
    (ours,) = greedy_decode(adapter, prefill(adapter, pad_left([prompt])), 8)
    stock = adapter.model.generate(
        **adapter.tokenizer(text, return_tensors="pt", return_token_type_ids=False),
        **pixels,
        max_new_tokens=8,
        do_sample=False,
        suppress_tokens=[adapter.image_token_id],
        return_dict_in_generate=True,
        output_logits=True,
    )
    start = stock.sequences.shape[1] - len(stock.logits)
    theirs = [t for t in stock.sequences[0, start:].tolist() if t not in adapter.eos_ids]
    assert list(ours.tokens) == theirs
    first = prefill(adapter, pad_left([prompt])).logits[0]
    kept = torch.isfinite(first)
    assert torch.allclose(first[kept], stock.logits[0][0][kept], atol=1e-4)
