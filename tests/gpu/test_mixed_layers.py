"""Layers that hand on a state, where a model is spread over devices."""

from pathlib import Path

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from sdrpn_core.decoding.recurrent_layers import TokenColumns
from sdrpn_core.models.loading import load_adapter
from tests.tiny_qwen import tiny_qwen3_5


@torch.no_grad()
def test_a_layer_on_another_device_passes_over_padding(device: str, tmp_path: Path) -> None:
    """Its answer was put among hidden states that were still where the layer before it is."""
    layer = load_adapter(tiny_qwen3_5(tmp_path), device="cpu").decoder.layers[2]
    tokens = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1]]).bool()
    hidden = torch.randn(2, 4, 48, generator=torch.Generator().manual_seed(0))
    rotation = (torch.zeros(2, 4, 8), torch.zeros(2, 4, 8))
    expected = TokenColumns(tokens).run(layer, hidden, None, rotation)
    add_hook_to_module(layer.to(device), AlignDevicesHook(execution_device=device))
    found = TokenColumns(tokens).run(layer, hidden, None, rotation)
    torch.testing.assert_close(found[tokens].cpu(), expected[tokens], atol=1e-4, rtol=1e-4)
