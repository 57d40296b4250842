"""Masks of padded batches in layers of every pattern, against their definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Gemma4TextConfig, Gemma4UnifiedTextConfig, MistralConfig, Qwen3Config
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextModel
from transformers.models.gemma4_unified.modeling_gemma4_unified import Gemma4UnifiedTextModel
from transformers.models.mistral.modeling_mistral import MistralModel
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

from sdrpn_core.attention.masks import ColumnMasks
from sdrpn_core.attention.patterns import CAUSAL, AttentionPattern, patterns_of

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 16,
    "pad_token_id": 0,
}


def causal_mask(key_mask: Tensor, num_columns: int) -> Tensor | None:
    images = torch.zeros(len(key_mask), num_columns, dtype=torch.int32)
    return ColumnMasks(images, key_mask).of(CAUSAL)


def test_padding_queries_stay_finite() -> None:
    key_mask = torch.tensor([[False, False, True, True], [True, True, True, True]])
    mask = causal_mask(key_mask, 4)
    assert mask is not None
    assert bool(mask.any(dim=-1).all()), "a query without keys would give NaN"
    assert mask[0, 0].tolist() == [
        [True, False, False, False],
        [False, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]


def test_mask_with_cached_columns_keeps_causality() -> None:
    mask = causal_mask(torch.ones(1, 5, dtype=torch.bool), 2)
    assert mask is not None
    assert mask[0, 0].tolist() == [[True, True, True, True, False], [True] * 5]
    assert causal_mask(torch.ones(1, 5, dtype=torch.bool), 1) is None
    assert causal_mask(torch.ones(1, 5, dtype=torch.bool), 5) is None


@st.composite
def columns(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """(2, S) which columns hold tokens, and (2, L) whose image they show; an image is whole."""
    num_keys = draw(st.integers(1, 9))
    num_columns = draw(st.integers(1, num_keys))
    rows = st.lists(st.booleans(), min_size=num_keys, max_size=num_keys)
    key_mask = torch.tensor([draw(rows), draw(rows)])
    numbers = st.lists(st.integers(0, 2), min_size=num_columns, max_size=num_columns)
    images = torch.tensor([sorted(draw(numbers)), sorted(draw(numbers))])
    return key_mask, images * key_mask[:, -num_columns:]


@given(columns(), st.sampled_from([None, 1, 2, 4, 20]), st.booleans())
@settings(deadline=None, max_examples=200)
def test_masks_are_what_the_pattern_says(
    given_columns: tuple[Tensor, Tensor], window: int | None, whole_images: bool
) -> None:
    """Pair by pair: windows count tokens, images are seen whole, and every column sees itself."""
    key_mask, images = given_columns
    num_columns, num_keys = images.shape[1], key_mask.shape[1]
    mask = ColumnMasks(images, key_mask).of(AttentionPattern(window, whole_images))
    if mask is None:
        mask = torch.ones(2, 1, num_columns, num_keys, dtype=torch.bool)
        mask = mask.tril(num_keys - num_columns)
    for row in range(2):
        for column in range(num_columns):
            query = num_keys - num_columns + column
            for key in range(num_keys):
                other = key - (num_keys - num_columns)
                number = int(images[row, column])
                is_same_image = number > 0 and other >= 0 and number == int(images[row, other])
                num_tokens = int(key_mask[row, key + 1 : query + 1].sum())
                is_seen = (
                    bool(key_mask[row, key])
                    and (key <= query or (whole_images and is_same_image))
                    and (window is None or num_tokens < window)
                )
                assert bool(mask[row, 0, column, key]) == (is_seen or key == query)


def test_one_mask_is_made_for_all_patterns_that_come_to_the_same() -> None:
    masks = ColumnMasks(torch.tensor([[0, 1, 1, 0]]), torch.tensor([[False, True, True, True]]))
    assert masks.of(CAUSAL) is masks.of(CAUSAL)
    assert masks.of(AttentionPattern(window=4)) is masks.of(CAUSAL)
    assert masks.of(AttentionPattern(window=3)) is not masks.of(CAUSAL)
    assert masks.of(AttentionPattern(whole_images=True)) is not masks.of(CAUSAL)


@pytest.mark.parametrize(
    ("model_class", "config", "patterns"),
    [
        (MistralModel, MistralConfig(**SIZES, num_hidden_layers=2), [AttentionPattern(4096)] * 2),
        (
            MistralModel,
            MistralConfig(**SIZES, num_hidden_layers=2, sliding_window=None),
            [CAUSAL] * 2,
        ),
        (Qwen3Model, Qwen3Config(**SIZES, num_hidden_layers=2), [CAUSAL] * 2),
        (
            Qwen3Model,
            Qwen3Config(
                **SIZES,
                num_hidden_layers=2,
                use_sliding_window=True,
                sliding_window=64,
                max_window_layers=1,
            ),
            [CAUSAL, AttentionPattern(64)],
        ),
        (
            Gemma4UnifiedTextModel,
            Gemma4UnifiedTextConfig(**SIZES, num_hidden_layers=6, sliding_window=32),
            [AttentionPattern(32, whole_images=True)] * 5 + [CAUSAL],
        ),
        (
            Gemma4TextModel,
            Gemma4TextConfig(
                **SIZES,
                num_hidden_layers=6,
                sliding_window=32,
                hidden_size_per_layer_input=0,
                use_bidirectional_attention="vision",  # as of 26B-A4B and 31B
            ),
            [AttentionPattern(32, whole_images=True)] * 5 + [CAUSAL],
        ),
    ],
)
def test_patterns_are_read_off_stock_layers(
    model_class: type, config: object, patterns: list[AttentionPattern]
) -> None:
    layers = model_class(config).layers
    assert [patterns_of([layer]) for layer in layers] == [{pattern} for pattern in patterns]
