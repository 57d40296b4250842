"""Greedy decoding under a repetition penalty, against transformers' own processor."""

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from sdrpn_core.generation.repetition import TokenChooser


@pytest.mark.parametrize("penalty", [1.05, 2.0, 0.5])
def test_chosen_tokens_are_those_of_the_stock_processor(penalty: float) -> None:
    """Positive and negative logits, a barred token, tokens of the prompt and of the answer."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.tensor([[1, 2, 2, 5], [0, 3, 4, 4]])
    held = torch.zeros(2, 32, dtype=torch.bool).scatter_(1, prompts, value=True)
    before = held.clone()
    chooser = TokenChooser(held, penalty, torch.device("cpu"))
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    sequence, num_changed = prompts, 0
    for _ in range(40):
        logits = torch.randn(2, 32, generator=generator)
        logits[:, 31] = float("-inf")
        tokens = processor(sequence, logits.clone()).argmax(dim=-1)
        assert chooser.choose(logits).tolist() == tokens.tolist()
        num_changed += int((tokens != logits.argmax(dim=-1)).sum())
        sequence = torch.cat([sequence, tokens[:, None]], dim=1)
    assert num_changed
    assert torch.equal(held, before)


def test_without_a_penalty_the_largest_logit_is_chosen() -> None:
    logits = torch.tensor([[0.1, 0.3, 0.2]])
    chooser = TokenChooser(None, 1.0, torch.device("cpu"))
    assert [chooser.choose(logits).item() for _ in range(3)] == [1, 1, 1]
