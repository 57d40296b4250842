"""Choice of the attention kernel, and the one thing flash-attn is told instead of a mask."""

import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_flash_attention_utils import _pad_input, _unpad_input, _upad_input
from transformers.utils import import_utils, is_flash_attn_2_available, is_torch_cuda_available

from sdrpn_core.attention.kernels import (
    FLASH,
    SDPA,
    CausalKeys,
    choose_kernel,
    flash_is_usable,
)
from sdrpn_core.attention.masks import ColumnMasks
from sdrpn_core.attention.patterns import CAUSAL

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
READ_AT_IMPORT = "PACKAGE_DISTRIBUTION_MAPPING" in vars(import_utils)
"""Whether transformers asks once for all packages; later versions ask a function that remembers."""


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

    remembered = [flash_is_usable, is_flash_attn_2_available, is_torch_cuda_available]
    if not READ_AT_IMPORT:
        remembered.append(import_utils._package_distribution_mapping)

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
    if READ_AT_IMPORT:
        found = packages_distributions()
        monkeypatch.setattr(import_utils, "PACKAGE_DISTRIBUTION_MAPPING", found)
    assert flash_is_usable() is usable
    assert ("install flash-attn 2" in caplog.text) is not usable


LAYOUTS = {
    "left padding": [[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]],
    "right padding": [[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]],
    "prefix, gap, suffix": [[0, 1, 1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 1, 1, 1]],
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("num_queries", [8, 4, 1])
def test_knowing_the_tokens_is_as_good_as_the_mask(layout: str, num_queries: int) -> None:
    """Tokens alone, causal, each prompt by itself: what flash-attn computes of unpadded input.

    Run with transformers' own unpadding and with sdpa in the kernel's place, on every layout of
    columns that the pipeline makes.
    """
    key_mask = torch.tensor(LAYOUTS[layout], dtype=torch.bool)
    torch.manual_seed(0)
    query = torch.randn(2, 3, num_queries, 8)
    key, value = torch.randn(2, 2, 3, 8, 8).unbind(0)
    mask = ColumnMasks(torch.zeros(2, num_queries), key_mask).of(CAUSAL)
    wanted = scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)

    keys = CausalKeys.from_mask(mask)
    assert keys.key_mask is not None or num_queries == 1
    found = unpadded_attention(query, key, value, keys.key_mask)
    tokens = key_mask[:, -num_queries:]
    assert torch.allclose(found[tokens], wanted[tokens], atol=1e-6)


def test_without_padding_there_is_nothing_to_tell() -> None:
    assert ColumnMasks(torch.zeros(2, 5), torch.ones(2, 5, dtype=torch.bool)).of(CAUSAL) is None
    assert CausalKeys.from_mask(None).key_mask is None


def unpadded_attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None
) -> Tensor:
    """(N, H, Sq, D) -> (N, Sq, H, D), prompt by prompt over its own tokens."""
    num_queries = query.shape[2]
    if key_mask is None:
        key_mask = torch.ones(key.shape[0], key.shape[2], dtype=torch.bool)
    q, k, v, indices, (starts_q, starts_k), _ = _upad_input(
        *(part.transpose(1, 2) for part in (query, key, value)), key_mask, num_queries, _unpad_input
    )
    rows = []
    for prompt in range(len(key_mask)):
        mine_q = slice(int(starts_q[prompt]), int(starts_q[prompt + 1]))
        mine_k = slice(int(starts_k[prompt]), int(starts_k[prompt + 1]))
        parts = (part.transpose(0, 1)[None] for part in (q[mine_q], k[mine_k], v[mine_k]))
        late = mine_k.stop - mine_k.start - (mine_q.stop - mine_q.start)
        causal = torch.ones(
            mine_q.stop - mine_q.start, mine_k.stop - mine_k.start, dtype=torch.bool
        ).tril(late)
        rows.append(scaled_dot_product_attention(*parts, attn_mask=causal)[0].transpose(0, 1))
    return _pad_input(torch.cat(rows), indices, len(key_mask), num_queries)
