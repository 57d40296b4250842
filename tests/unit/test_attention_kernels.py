"""Choice of the attention kernel, and the one thing flash-attn is told instead of a mask."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_flash_attention_utils import _pad_input, _unpad_input
from transformers.utils import is_flash_attn_2_available, is_torch_cuda_available
from transformers.utils.import_utils import _package_distribution_mapping

from sdrpn_core.attention.kernels import (
    FLASH,
    SDPA,
    CausalKeys,
    choose_kernel,
    flash_attention,
    flash_is_usable,
)
from sdrpn_core.attention.masks import ColumnMasks
from sdrpn_core.attention.patterns import CAUSAL
from sdrpn_core.models.loading import load_adapter
from tests.tiny_models import tiny_llava
from tests.zoom_checks import random_images, random_pipeline

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "has_flash", "kernel"),
    [
        (CUDA, torch.bfloat16, 128, True, FLASH),
        (CUDA, torch.float16, 64, True, FLASH),
        (CUDA, torch.bfloat16, 256, True, FLASH),
        (CUDA, torch.bfloat16, 128, False, SDPA),
        (CUDA, torch.float32, 128, True, SDPA),
        (CUDA, torch.bfloat16, 288, True, SDPA),
        (CUDA, torch.bfloat16, 12, True, SDPA),
        (CPU, torch.bfloat16, 128, True, SDPA),
    ],
)
def test_flash_runs_only_where_it_can(
    device: torch.device, dtype: torch.dtype, head_dim: int, has_flash: bool, kernel: str
) -> None:
    assert choose_kernel(device, dtype, head_dim, has_flash=has_flash) == kernel


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_there_is_no_flash() -> None:
    assert flash_is_usable() is False


@pytest.fixture
def gpu_that_runs_flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is asked of a GPU, answered without one; what was found before is forgotten."""

    remembered = (
        flash_is_usable,
        is_flash_attn_2_available,
        is_torch_cuda_available,
        _package_distribution_mapping,
    )

    def forget() -> None:
        sys.modules.pop("flash_attn", None)
        for function in remembered:
            function.cache_clear()

    forget()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    yield
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize(
    ("distribution", "version", "usable"),
    [
        ("flash-attn", "2.8.3", True),
        ("flash-attn", "1.0.9", False),
        ("flash-attn-4", "4.0.0", False),
    ],
)
@pytest.mark.usefixtures("gpu_that_runs_flash")
def test_an_installed_flash_attn_must_be_one_that_transformers_runs(
    distribution: str,
    version: str,
    usable: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A package that imports, installed under the name and version of a release."""
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn/__init__.py").touch()
    metadata = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    )
    (metadata / "top_level.txt").write_text("flash_attn\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert flash_is_usable() is usable
    assert ("install flash-attn 2" in caplog.text) is not usable


LAYOUTS = {
    "left padding": [[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]],
    "right padding": [[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]],
    "prefix, gap, suffix": [[0, 1, 1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 1, 1, 1]],
}


@pytest.fixture
def kernels_called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of flash-attn's functions in the order of their calls; sdpa computes in their place."""
    called: list[str] = []

    def flash(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, softmax_scale: float) -> Tensor:
        assert causal
        called.append("flash")
        lower_right = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
        parts = (part.transpose(1, 2) for part in (q, k, v))
        return scaled_dot_product_attention(
            *parts,
            attn_mask=lower_right.tril(k.shape[1] - q.shape[1]),
            scale=softmax_scale,
            enable_gqa=True,
        ).transpose(1, 2)

    def varlen(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        **kwargs: Any,
    ) -> Tensor:
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        own, others = (starts.diff().tolist() for starts in (cu_seqlens_q, cu_seqlens_k))
        assert (kwargs.pop("max_seqlen_q"), kwargs.pop("max_seqlen_k")) == (max(own), max(others))
        prompts = zip(q.split(own), k.split(others), v.split(others), strict=True)
        found = torch.cat([flash(*(p[None] for p in parts), **kwargs)[0] for parts in prompts])
        called[-len(own) :] = ["varlen"]
        return found

    def settings(
        *,
        is_causal: bool,
        softmax_scale: float,
        max_seqlen_q: int = 0,
        max_seqlen_k: int = 0,
        **_: Any,
    ) -> dict[str, Any]:
        longest = {"max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k}
        given = {"causal": is_causal, "softmax_scale": softmax_scale}
        return {**given, **longest} if max_seqlen_k else given

    functions = (flash, varlen, None, _pad_input, _unpad_input), (settings, settings)
    monkeypatch.setattr(
        "transformers.modeling_flash_attention_utils.lazy_import_flash_attention",
        lambda _: functions,
    )
    return called


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("num_queries", [8, 4, 1])
@pytest.mark.usefixtures("kernels_called")
def test_knowing_the_tokens_is_as_good_as_the_mask(layout: str, num_queries: int) -> None:
    """Tokens alone, causal, each prompt by itself: what flash-attn computes of unpadded input.

    Run with sdpa in the kernel's place, on every layout of columns that the pipeline makes.
    """
    key_mask = torch.tensor(LAYOUTS[layout], dtype=torch.bool)
    torch.manual_seed(0)
    query = torch.randn(2, 3, num_queries, 8)
    key, value = torch.randn(2, 2, 3, 8, 8).unbind(0)
    mask = ColumnMasks(torch.zeros(2, num_queries), key_mask).of(CAUSAL)
    wanted = scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)

    keys = CausalKeys.from_mask(mask)
    assert keys.key_mask is not None or num_queries == 1
    found = flash_attention(query, key, value, keys, scaling=8**-0.5)
    tokens = key_mask[:, -num_queries:]
    assert torch.allclose(found[tokens], wanted[tokens], atol=1e-6)


def test_without_padding_there_is_nothing_to_tell() -> None:
    assert ColumnMasks(torch.zeros(2, 5), torch.ones(2, 5, dtype=torch.bool)).of(CAUSAL) is None
    assert CausalKeys.from_mask(None).packings is None


def test_columns_that_follow_others_without_padding_are_not_unpadded(
    kernels_called: list[str],
) -> None:
    """They have a mask, which says no more than that they follow; their keys were copied, and the
    device waited for, in every layer."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 9, 8)
    mask = ColumnMasks(torch.zeros(2, 4), torch.ones(2, 9, dtype=torch.bool)).of(CAUSAL)
    assert mask is not None
    found = flash_attention(query, key, key, CausalKeys.from_mask(mask), scaling=1.0)
    wanted = scaled_dot_product_attention(query, key, key, attn_mask=mask, scale=1.0)
    assert torch.allclose(found, wanted.transpose(1, 2), atol=1e-6)
    assert kernels_called == ["flash"]


def test_layers_of_a_padded_pass_wait_for_the_device_once(kernels_called: list[str]) -> None:
    """Where tokens are was asked for anew in every layer, and all that it had to do was waited
    for."""
    mask = ColumnMasks(torch.zeros(2, 8), torch.tensor(LAYOUTS["left padding"]) > 0).of(CAUSAL)
    keys, states = CausalKeys.from_mask(mask), torch.randn(2, 3, 8, 8)
    with Waits() as waits:
        first = flash_attention(states, states, states, keys, scaling=1.0)
        assert waits.names, "a padded pass asks the device where its tokens are"
        waits.names.clear()
        second = flash_attention(states, states, states, keys, scaling=1.0)
    assert torch.equal(first, second)
    assert kernels_called == ["varlen", "varlen"]
    assert waits.names == []


class Waits(TorchDispatchMode):
    """Notes operations whose result a GPU is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if (name := function.overloadpacket.__name__) in ("nonzero", "_local_scalar_dense"):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def test_a_zoom_by_flash_attn_answers_as_by_sdpa(
    kernels_called: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
                patch.setitem(vars(adapter.decoder), "attention_kernel", FLASH)
                with_flash = pipeline.answer(asked, questions)
            assert set(kernels_called) == {"flash", "varlen"}
            for one, other in zip(with_sdpa, with_flash, strict=True):
                assert (one.text, one.boxes, one.decision) == (
                    other.text,
                    other.boxes,
                    other.decision,
                )
                assert one.roi_map == pytest.approx(other.roi_map, abs=1e-5)
