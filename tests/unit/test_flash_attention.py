"""Flash attention of padded prompts: what it is told instead of a mask. Kernels: ``tests/gpu``."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_flash_attention_utils import (
    _flash_attention_forward,
    _pad_input,
    _unpad_input,
)

from sdrpn_core.attention import flash_attention as flash_module
from sdrpn_core.attention.flash_attention import FLASH, TORCH_FLASH, CausalKeys, flash_attention
from sdrpn_core.attention.masks import ColumnMasks
from sdrpn_core.attention.patterns import CAUSAL
from sdrpn_core.models.loading import load_adapter
from tests.flash_kernels import dense, packed
from tests.tiny_models import tiny_llava
from tests.waits import Waits
from tests.zoom_checks import random_images, random_pipeline

KERNELS = [FLASH, TORCH_FLASH]
KNOWS_PAGES = "block_table" in inspect.signature(_flash_attention_forward).parameters
"""Whether transformers has a second function of a kernel's settings; earlier versions have one."""

LAYOUTS = {
    "left padding": [[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]],
    "right padding": [[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]],
    "prefix, gap, suffix": [[0, 1, 1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 1, 1, 1]],
}


@pytest.fixture
def kernels_called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels in the order of their calls, for packed prompts or not; sdpa computes in their
    place."""
    called: list[str] = []

    def flash(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, softmax_scale: float) -> Tensor:
        assert causal
        called.append("dense")
        return dense(q, k, v, softmax_scale)

    def varlen(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        causal: bool,
        softmax_scale: float,
    ) -> Tensor:
        assert causal
        called.append("packed")
        lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        return packed(q, k, v, *lengths, softmax_scale)

    def settings(*, is_causal: bool, softmax_scale: float, **given: Any) -> dict[str, Any]:
        longest = {name: length for name, length in given.items() if name.startswith("max_seqlen")}
        return {"causal": is_causal, "softmax_scale": softmax_scale, **longest}

    def torch_kernel(q: Tensor, k: Tensor, v: Tensor, *lengths: Any) -> Tensor:
        called.append("dense" if lengths[0] is None else "packed")
        return packed(q, k, v, *lengths)

    own = (settings, settings) if KNOWS_PAGES else settings
    functions = (flash, varlen, None, _pad_input, _unpad_input), own
    monkeypatch.setattr(
        "transformers.modeling_flash_attention_utils.lazy_import_flash_attention",
        lambda _: functions,
    )
    monkeypatch.setattr(flash_module, "_torch_kernel", torch_kernel)
    return called


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("num_queries", [8, 4, 1])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.usefixtures("kernels_called")
def test_knowing_the_tokens_is_as_good_as_the_mask(
    layout: str, num_queries: int, kernel: str
) -> None:
    """Tokens alone, causal, each prompt by itself: what flash-attn computes of unpadded input.

    Run with sdpa in the kernel's place, on every layout of columns that the pipeline makes.
    """
    key_mask = torch.tensor(LAYOUTS[layout], dtype=torch.bool)
    torch.manual_seed(0)
    query = torch.randn(2, 3, num_queries, 8)
    key, value = torch.randn(2, 2, 3, 8, 8).unbind(0)
    mask = ColumnMasks(torch.zeros(2, num_queries), key_mask).of(CAUSAL)
    wanted = scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)

    keys = CausalKeys.from_mask(mask, kernel)
    assert keys.key_mask is not None or num_queries == 1
    found = flash_attention(query, key, value, keys, scaling=8**-0.5)
    tokens = key_mask[:, -num_queries:]
    assert torch.allclose(found[tokens], wanted[tokens], atol=1e-6)


def test_without_padding_there_is_nothing_to_tell() -> None:
    assert ColumnMasks(torch.zeros(2, 5), torch.ones(2, 5, dtype=torch.bool)).of(CAUSAL) is None
    assert CausalKeys.from_mask(None).packings is None


@pytest.mark.parametrize("kernel", KERNELS)
def test_columns_that_follow_others_without_padding_are_not_unpadded(
    kernel: str, kernels_called: list[str]
) -> None:
    """They have a mask, which says no more than that they follow; their keys were copied, and the
    device waited for, in every layer."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 9, 8)
    mask = ColumnMasks(torch.zeros(2, 4), torch.ones(2, 9, dtype=torch.bool)).of(CAUSAL)
    assert mask is not None
    keys = CausalKeys.from_mask(mask, kernel)
    found = flash_attention(query, key, key, keys, scaling=1.0)
    wanted = scaled_dot_product_attention(query, key, key, attn_mask=mask, scale=1.0)
    assert torch.allclose(found, wanted.transpose(1, 2), atol=1e-6)
    assert kernels_called == ["dense"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_layers_of_a_padded_pass_wait_for_the_device_once(
    kernel: str, kernels_called: list[str]
) -> None:
    """Where tokens are was asked for anew in every layer, and all that it had to do was waited
    for."""
    mask = ColumnMasks(torch.zeros(2, 8), torch.tensor(LAYOUTS["left padding"]) > 0).of(CAUSAL)
    keys, states = CausalKeys.from_mask(mask, kernel), torch.randn(2, 3, 8, 8)
    with Waits() as waits:
        first = flash_attention(states, states, states, keys, scaling=1.0)
        assert waits.names, "a padded pass asks the device where its tokens are"
        waits.names.clear()
        second = flash_attention(states, states, states, keys, scaling=1.0)
    assert torch.equal(first, second)
    assert kernels_called == ["packed", "packed"]
    assert waits.names == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_zoom_by_flash_attention_answers_as_by_sdpa(
    kernel: str, kernels_called: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padded and not, questions that share an image or not, the image in view or withdrawn."""
    adapter = load_adapter(tiny_llava(tmp_path, seed=3), device="cpu")
    questions = ["what is it ?", "what is the small red word ? a a a a blue", "it", "red blue ?"]
    images = random_images([(60, 40), (30, 50), (45, 45), (80, 20)])
    for withdraw_image in (False, True):
        pipeline = random_pipeline(adapter)
        pipeline.regions = pipeline.regions.with_changes(withdraw_image=withdraw_image)
        for asked in (images, [images[0]] * 4):
            with_sdpa = pipeline.answer(asked, questions)
            kernels_called.clear()
            with monkeypatch.context() as patch:
                patch.setitem(vars(adapter.decoder), "attention_kernel", kernel)
                with_flash = pipeline.answer(asked, questions)
            # Without a mask, sdpa runs what torch's would be called for.
            assert "packed" in kernels_called
            assert "dense" in kernels_called or kernel == TORCH_FLASH
            for one, other in zip(with_sdpa, with_flash, strict=True):
                assert (one.text, one.boxes, one.decision) == (
                    other.text,
                    other.boxes,
                    other.decision,
                )
                assert one.roi_map == pytest.approx(other.roi_map, abs=1e-5)


@torch.inference_mode()
def test_sdpa_runs_what_has_no_mask_and_gradients_for_torch(tmp_path: Path) -> None:
    decoder = load_adapter(tiny_llava(tmp_path, seed=3), device="cpu").decoder
    numbers = torch.zeros(2, 8, dtype=torch.int32)
    padded, full = (
        ColumnMasks(numbers, key_mask)
        for key_mask in (torch.tensor(LAYOUTS["left padding"]) > 0, torch.ones(2, 8) > 0)
    )
    assert decoder._flash_keys(padded, TORCH_FLASH) is not None
    assert decoder._flash_keys(full, TORCH_FLASH) is None
    with torch.enable_grad():
        assert decoder._flash_keys(padded, TORCH_FLASH) is None
        assert decoder._flash_keys(padded, FLASH) is not None


def test_the_operation_of_torch_is_called_as_it_wants_to_be() -> None:
    """Its signature, by tensors that say they are on a GPU and hold nothing."""
    with FakeTensorMode():
        make: Callable[..., Tensor] = lambda *shape: torch.empty(  # noqa: E731
            shape, device="cuda", dtype=torch.bfloat16
        )
        starts = torch.empty(3, device="cuda", dtype=torch.int32)
        query, key = make(7, 4, 64), make(11, 2, 64)
        found = flash_module._torch_kernel(query, key, key, starts, starts, 5, 9, 0.1)
        assert found.shape == query.shape
        query, key = make(2, 5, 4, 64), make(2, 9, 2, 64)
        found = flash_module._torch_kernel(query, key, key, None, None, 5, 9, 0.1)
        assert found.shape == query.shape
