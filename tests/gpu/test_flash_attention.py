"""Flash attention of padded prompts on the GPU, by flash-attn or by torch, against sdpa's masks."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from sdrpn_core.attention.flash_attention import FLASH, TORCH_FLASH, CausalKeys, flash_attention
from sdrpn_core.attention.kernels import SDPA, flash_is_usable, torch_flash_is_usable
from sdrpn_core.attention.masks import ColumnMasks
from sdrpn_core.attention.patterns import CAUSAL
from sdrpn_core.generation.greedy import prefill
from sdrpn_core.generation.prompt_batch import pad_left
from sdrpn_core.models.base import ModelAdapter
from tests.zoom_checks import random_images

QUESTIONS = ["what is it ?", "what is the small red word ? a a a a blue", "it", "red blue ?"]


@pytest.fixture(params=[FLASH, TORCH_FLASH])
def kernel(request: pytest.FixtureRequest, cuda: str) -> str:
    kernel: str = request.param
    if kernel == FLASH and not flash_is_usable():
        pytest.skip("needs flash-attn")
    if kernel == TORCH_FLASH and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs compute capability 8.0")
    return kernel


def test_a_gpu_that_has_it_uses_the_flash_attention_of_torch(cuda: str) -> None:
    """Fails where torch changed the operation: padded prompts would be read slower, unnoticed."""
    assert torch_flash_is_usable() is (torch.cuda.get_device_capability() >= (8, 0))


@pytest.mark.parametrize(("num_keys", "num_queries"), [(700, 700), (900, 320), (640, 20)])
@pytest.mark.parametrize("is_padded", [True, False])
@pytest.mark.parametrize("num_key_heads", [8, 2])
def test_it_computes_what_sdpa_does_of_the_mask(
    kernel: str, num_keys: int, num_queries: int, is_padded: bool, num_key_heads: int
) -> None:
    """Rows as of a prefix padded on its left and a suffix padded on its left, and whole ones."""
    columns = torch.arange(num_keys, device="cuda")
    padding = (columns < 40) | ((columns >= num_keys - 20) & (columns < num_keys - 9))
    key_mask = torch.stack([columns >= 0, ~padding if is_padded else columns >= 0])
    numbers = torch.zeros(2, num_queries, dtype=torch.int32, device="cuda")
    mask = ColumnMasks(numbers, key_mask).of(CAUSAL)
    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, length, 128, generator=generator, device="cuda").bfloat16()
        for heads, length in (
            (8, num_queries),
            (num_key_heads, num_keys),
            (num_key_heads, num_keys),
        )
    )
    if mask is None:
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device="cuda").tril()[None, None]
    wanted = scaled_dot_product_attention(
        query.float(), key.float(), value.float(), attn_mask=mask, enable_gqa=True
    ).transpose(1, 2)
    keys = CausalKeys.from_mask(mask.expand(2, -1, -1, -1), kernel)
    found = flash_attention(query, key, value, keys, 128**-0.5)
    tokens = key_mask[:, -num_queries:]
    torch.testing.assert_close(found[tokens].float(), wanted[tokens], atol=2**-6, rtol=2**-6)


@torch.inference_mode()
def test_a_padded_batch_in_bfloat16_is_as_by_sdpa(
    kernel: str, half: ModelAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = half.encode_images(random_images([(60, 40), (30, 50), (45, 45), (80, 20)]))
    prompts = [half.embed_prompt(q, [i]) for q, i in zip(QUESTIONS, images, strict=True)]
    logits = {}
    for name in (kernel, SDPA):
        with monkeypatch.context() as patch:
            patch.setitem(vars(half.decoder), "attention_kernel", name)
            logits[name] = prefill(half, pad_left(prompts)).logits
    scale = float(logits[SDPA].abs().max())
    torch.testing.assert_close(logits[kernel], logits[SDPA], atol=scale * 2**-4, rtol=0)
