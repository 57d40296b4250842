"""A decoding step on buffers of fixed size, as CUDA graphs need it, against one that grows."""

from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from transformers.cache_utils import LinearAttentionLayer

from sdrpn_core.decoding.fixed_step import FixedStep, StepShape, can_be_fixed
from sdrpn_core.decoding.growing_step import GrowingStep
from sdrpn_core.decoding.recurrent_layers import states_of
from sdrpn_core.decoding.state import Decoding, Step
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.zoom.first_stage import first_stage
from sdrpn_core.zoom.second_stage import second_stage_prefill
from tests.families.conftest import QUESTIONS, Loaded

NUM_STEPS = 5


def starts(
    loaded: Loaded,
    images: Sequence[Image.Image],
    crops: Sequence[Sequence[Image.Image]],
    *,
    withdraw_image: bool,
) -> list[Decoding]:
    """The same one twice: a decoding uses its start up."""
    adapter = loaded.adapter
    rpn = RegionProposalNetwork.from_adapter(adapter, loaded.shape)
    rows = [adapter.encode_images(row) if row else [] for row in crops]
    first = first_stage(adapter, rpn, adapter.encode_images(images), QUESTIONS[: len(images)])
    return [
        second_stage_prefill(adapter, first, rows, withdraw_image=withdraw_image) for _ in range(2)
    ]


def logits_of(step: Step, start: Decoding) -> torch.Tensor:
    """(steps, N, vocabulary) of greedy decoding."""
    logits, found = start.logits, []
    for _ in range(NUM_STEPS):
        logits = step.next_logits(logits.argmax(dim=-1)).clone()
        found.append(logits)
    return torch.stack(found)


def fixed_step(loaded: Loaded, start: Decoding) -> FixedStep:
    shape = StepShape.of(start, NUM_STEPS, columns_at_once=128)
    step = FixedStep(loaded.adapter.decoder, start, shape)
    step.load(start)
    return step


def test_growing_past_the_first_room_changes_nothing(
    loaded: Loaded,
    images: list[Image.Image],
    crops: list[list[Image.Image]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = starts(loaded, images, crops, withdraw_image=False)
    expected = logits_of(GrowingStep(loaded.adapter.decoder, one, NUM_STEPS), one)
    monkeypatch.setattr("sdrpn_core.decoding.cache_layers._ROOM_AT_ONCE", 2)
    grown = logits_of(GrowingStep(loaded.adapter.decoder, other, NUM_STEPS), other)
    torch.testing.assert_close(grown, expected, atol=0, rtol=0)


@pytest.mark.parametrize("withdraw_image", [False, True])
def test_decoding_on_fixed_buffers_equals_growing_ones(
    loaded: Loaded,
    images: list[Image.Image],
    crops: list[list[Image.Image]],
    withdraw_image: bool,
) -> None:
    """Padded rows, with and without crops; with the image withdrawn, layers of two lengths."""
    one, other = starts(loaded, images, crops, withdraw_image=withdraw_image)
    assert can_be_fixed(loaded.adapter.decoder, one)
    fixed = logits_of(fixed_step(loaded, one), one)
    growing = logits_of(GrowingStep(loaded.adapter.decoder, other, NUM_STEPS), other)
    loaded.assert_close(fixed, growing)


def test_a_growing_step_asks_the_device_nothing(
    loaded: Loaded,
    images: list[Image.Image],
    crops: list[list[Image.Image]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not of padding, which it was told of, nor of its own column, which holds a token."""
    start, _ = starts(loaded, images, crops, withdraw_image=True)
    step = GrowingStep(loaded.adapter.decoder, start, NUM_STEPS)
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda value: asked.append(value) or value.item())
    logits_of(step, start)
    assert asked == []


def test_an_earlier_answer_in_the_buffers_is_not_seen(
    loaded: Loaded, images: list[Image.Image], crops: list[list[Image.Image]]
) -> None:
    """Long prompts first, then short ones with the same buffers."""
    long, expected = starts(loaded, images, crops, withdraw_image=False)
    short, alone = starts(loaded, images, [[] for _ in images], withdraw_image=False)
    step = fixed_step(loaded, long)
    first = logits_of(step, long)
    step.load(short)
    reused = logits_of(step, short)
    step.load(expected)
    torch.testing.assert_close(logits_of(step, expected), first, atol=0, rtol=0)
    growing = logits_of(GrowingStep(loaded.adapter.decoder, alone, NUM_STEPS), alone)
    loaded.assert_close(reused, growing)
    broken, _ = starts(loaded, images, crops, withdraw_image=False)
    after, _ = starts(loaded, images, [[] for _ in images], withdraw_image=False)
    with torch.inference_mode():
        for layer in broken.cache.layers:
            if isinstance(layer, LinearAttentionLayer):
                for state in states_of(layer):
                    state.fill_(float("inf"))
            else:
                layer.values[..., -1, :] = float("inf")
    step.load(broken)
    logits_of(step, broken)
    step.load(after)
    torch.testing.assert_close(logits_of(step, after), reused, atol=0, rtol=0)
