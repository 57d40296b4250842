"""Towers that look at images in windows: the stock features, in far fewer calls of the kernel."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from sdrpn_core.models import window_attention
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.qwen2_5_vl import Qwen2_5VlAdapter
from tests.tiny_qwen import tiny_qwen2_5_vl, tiny_qwen3_vl
from tests.zoom_checks import random_images


@pytest.mark.parametrize("for_labels", [True, False], ids=["labels", "answers"])
@pytest.mark.parametrize("build", [tiny_qwen2_5_vl, tiny_qwen3_vl], ids=["qwen2.5", "qwen3"])
def test_features_of_several_images_are_the_stock_towers(
    build, for_labels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = load_adapter(build(tmp_path), device="cpu")
    assert isinstance(adapter, Qwen2_5VlAdapter)
    images = random_images([(60, 40), (30, 50), (45, 45), (80, 20), (61, 40)])
    prepared = adapter.prepare_images(images, for_labels=for_labels)
    calls: list[int] = []
    kernel = window_attention.scaled_dot_product_attention

    def counted(query: torch.Tensor, *tensors: torch.Tensor, scale: float) -> torch.Tensor:
        calls.append(len(query))
        return kernel(query, *tensors, scale=scale)

    asked: list[torch.Tensor] = []
    monkeypatch.setattr(window_attention, "scaled_dot_product_attention", counted)
    monkeypatch.setattr(
        window_attention, "pairwise", lambda bounds: [asked.append(bounds), *pairwise(bounds)][1:]
    )
    ours = adapter.encode_prepared(prepared)
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation="sdpa")
    with torch.inference_mode():
        expected = stock.model.get_image_features(**prepared.inputs, return_dict=True)
    for found, wanted in zip(ours, expected.pooler_output, strict=True):
        torch.testing.assert_close(found.tokens, wanted, atol=1e-5, rtol=1e-5)
    assert sum(calls) > len(calls), "no two windows of one length, this test shows nothing"
    assert len(asked) <= 2, "each layer waited for the device to say where windows end"
    if for_labels:
        num_layers = len(adapter.model.model.visual.blocks)
        assert len(calls) <= num_layers * 3, "windows of a square grid have three sizes at most"


def test_one_window_needs_no_bounds() -> None:
    query, key, value = torch.randn(3, 1, 2, 5, 4).unbind()
    whole, _ = window_attention.window_attention(
        torch.nn.Module(), query, key, value, scaling=0.3, cu_seq_lens_q=torch.tensor([0, 5])
    )
    plain, _ = window_attention.window_attention(torch.nn.Module(), query, key, value, scaling=0.3)
    weights = (0.3 * query @ key.transpose(-1, -2)).softmax(dim=-1)
    torch.testing.assert_close(whole, (weights @ value).transpose(1, 2))
    assert torch.equal(plain, whole)
