"""Choice of the attention kernel."""

import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.utils import import_utils, is_flash_attn_2_available, is_torch_cuda_available

from sdrpn_core.attention.flash_attention import FLASH, TORCH_FLASH
from sdrpn_core.attention.kernels import (
    SDPA,
    choose_kernel,
    flash_is_usable,
    torch_flash_is_usable,
)
from tests.flash_kernels import packed

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
    found = choose_kernel(device, dtype, head_dim, has_flash=False, has_torch_flash=has_flash)
    assert found == (TORCH_FLASH if kernel == FLASH else SDPA)


def test_flash_attn_goes_before_the_flash_attention_of_torch() -> None:
    found = choose_kernel(CUDA, torch.bfloat16, 128, has_flash=True, has_torch_flash=True)
    assert found == FLASH


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_there_is_no_flash() -> None:
    assert flash_is_usable() is False
    assert torch_flash_is_usable() is False


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


@pytest.mark.parametrize("wrong", [None, "of packed prompts", "of others"])
@pytest.mark.usefixtures("gpu_that_runs_flash")
def test_the_flash_attention_of_torch_is_tried_before_it_is_used(
    wrong: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older torch has none, or another; here in float32, as a CPU has none of it."""

    def kernel(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        found = packed(query, key, value, *rest)
        is_wrong = wrong == ("of packed prompts" if query.ndim == 3 else "of others")
        return found.flip(0) if is_wrong else found

    on_the_cpu = partial(torch.arange, device="cpu")
    monkeypatch.setattr(torch, "arange", lambda *args, device: on_the_cpu(*args))
    monkeypatch.setattr("sdrpn_core.attention.flash_attention._torch_kernel", kernel)
    torch_flash_is_usable.cache_clear()
    assert torch_flash_is_usable() is (wrong is None)
    torch_flash_is_usable.cache_clear()


@pytest.mark.parametrize("kind", [NotImplementedError, ModuleNotFoundError, TypeError])
@pytest.mark.usefixtures("gpu_that_runs_flash")
def test_a_torch_whose_flash_attention_does_not_run_uses_sdpa(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it, older than it, or with another signature."""

    def missing(is_padded: bool) -> float:
        raise kind("built without it")

    caplog.set_level("INFO")
    monkeypatch.setattr("sdrpn_core.attention.kernels._torch_flash_difference", missing)
    torch_flash_is_usable.cache_clear()
    assert torch_flash_is_usable() is False
    torch_flash_is_usable.cache_clear()
    assert "built without it" in caplog.text
