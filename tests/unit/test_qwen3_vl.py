"""What is Qwen3-VL's own: features of several depths, and experts, in either form they come in."""

from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file

from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.qwen3_vl import Qwen3VlAdapter
from tests.tiny_qwen import tiny_qwen3_vl, tiny_qwen3_vl_moe


def test_deepstack_features_of_all_images_together_are_told_apart(tmp_path: Path) -> None:
    """Up to transformers 5.17, every cell of an image got the first image's first feature."""
    adapter = load_adapter(tiny_qwen3_vl(tmp_path), device="cpu")
    assert isinstance(adapter, Qwen3VlAdapter)
    tokens = (torch.zeros(2, 4), torch.zeros(3, 4))
    joint = [torch.arange(20.0).reshape(5, 4), torch.arange(20.0, 40.0).reshape(5, 4)]
    apart = [level.split([2, 3]) for level in joint]
    for levels in (joint, apart):
        output = SimpleNamespace(pooler_output=tokens, deepstack_features=levels)
        first, second = adapter._deepstack(output) or ()
        for depth, level in enumerate(joint):
            assert torch.equal(first[depth], level[:2])
            assert torch.equal(second[depth], level[2:])


def test_experts_are_read_as_the_hub_has_them(tmp_path: Path) -> None:
    """Turned, against what transformers writes: they must not count as weights of another shape."""
    profile, file = tiny_qwen3_vl_moe(tmp_path), tmp_path / "model.safetensors"
    expected = load_adapter(profile, device="cpu").model.state_dict()
    written = load_file(file)
    turned = {
        name: value.transpose(1, 2).contiguous() if ".mlp.experts." in name else value
        for name, value in written.items()
    }
    assert any(turned[name].shape != value.shape for name, value in written.items())
    save_file(turned, file, metadata={"format": "pt"})
    found = load_adapter(profile, device="cpu").model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
