"""How large a family's RPN and grid are, without loading the model."""

from pathlib import Path

import pytest
from PIL import Image

from sdrpn_core.models.dimensions import model_dimensions
from sdrpn_core.models.profiles import load_profile
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.rpn.size import num_rpn_parameters
from tests.families.conftest import Loaded


def test_parameters_of_the_rpn_are_those_of_the_network(loaded: Loaded) -> None:
    network = RegionProposalNetwork.from_adapter(loaded.adapter, loaded.shape)
    size = sum(weights.numel() for weights in network.parameters())
    dimensions = model_dimensions(loaded.adapter.profile)
    assert dimensions.are_read
    assert num_rpn_parameters(dimensions.text, loaded.shape) == size


def test_cells_are_the_most_that_a_picture_gets_for_labels(loaded: Loaded) -> None:
    pictures = [Image.new("RGB", (side, side)) for side in (8, 40, 400, 1600)]
    features = loaded.adapter.encode_images(pictures, for_labels=True)
    most = max(image.grid.num_cells for image in features)
    assert model_dimensions(loaded.adapter.profile).num_cells == most


@pytest.mark.parametrize(
    ("name", "hidden_size", "num_cells"),
    [
        ("llava-1.5-7b", 4096, 576),
        ("llava-1.5-13b", 5120, 576),
        ("qwen3.5-9b", 3200, 576),
        ("gemma-4-12b", 3840, 529),
        ("gemma-3-12b", 3840, 256),
        ("internvl3-8b", 3584, 256),
        ("smolvlm2-2.2b", 2048, 81),
        ("llava-onevision-7b", 3584, 729),
        ("ministral-3-8b", 4096, 576),
    ],
)
def test_a_model_that_is_not_here_is_taken_for_a_llama(
    name: str,
    hidden_size: int,
    num_cells: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Of its family's usual width: all had been taken to have heads of 128, and grids of 576."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    profile = load_profile(name)
    found = model_dimensions(profile)
    assert not found.are_read
    assert (found.text.hidden_size, found.num_cells) == (hidden_size, num_cells)
    of_a_layer = 4 * hidden_size**2 + 3 * hidden_size * (hidden_size * 8 // 3)
    of_the_last = 2 * hidden_size**2  # queries and keys
    norms = (2 * profile.rpn.depth - 1 + profile.rpn.final_norm) * hidden_size
    rpn = num_rpn_parameters(found.text, profile.rpn)
    assert rpn == (profile.rpn.depth - 1) * of_a_layer + of_the_last + norms


_SCORING = 2048 * (4096 + 512) + 2048  # queries, keys and input norm
_ATTENTION = 2 * 2048 * 4096 + 2 * 2048 * 512 + 2 * 128  # with norms of query and key heads
_DELTA_NET = 2048 * (8192 + 4096 + 2 * 32) + 8192 * 4 + 2 * 32 + 128 + 4096 * 2048
_SHARED_EXPERT = 3 * 2048 * 512 + 2048  # with its gate
_NORMS = 2 * 2048


def _glm_attention(num_heads: int, num_key_heads: int) -> tuple[int, int]:
    """Of a layer that is 4096 wide: queries and keys with their norm, and what else there is."""
    keys = (4096 + 1) * num_key_heads * 128  # or values
    return (4096 + 1) * num_heads * 128 + keys + 4096, keys + num_heads * 128 * 4096


_GLM_SCORING, _GLM_REST = _glm_attention(32, 2)
_GLM_LAYER = _GLM_SCORING + _GLM_REST + 3 * 4096 * 13696 + 3 * 4096
_GLM_MOE_SCORING, _GLM_MOE_REST = _glm_attention(96, 8)
_GLM_MOE_LAYER = _GLM_MOE_SCORING + _GLM_MOE_REST + 3 * 4096 * 1408 + 4096


def _gemma(width: int, heads: int, feed_forward: int, *, num_norms: int) -> int:
    """Two layers with a window and, to score, one without, whose heads are twice as wide."""
    attention = width * (2 * heads + 2 * (heads // 2)) * 256 + 2 * 256
    scoring = width * (heads + heads // 8) * 512 + width + 2 * 512
    return 2 * (attention + 3 * width * feed_forward + num_norms * width) + scoring


@pytest.mark.parametrize(
    ("name", "sizes", "expected"),
    [
        ("qwen3-vl-30b-a3b", (2048, 576), 2 * (_ATTENTION + _NORMS) + _SCORING + 2 * 128),
        (
            "qwen3.5-35b-a3b",
            (2048, 576),
            2 * (_DELTA_NET + _SHARED_EXPERT + _NORMS) + _SCORING + 2 * 256,
        ),
        ("glm-4.5v", (4096, 576), 2 * _GLM_MOE_LAYER + _GLM_MOE_SCORING),
        ("glm-4.1v-9b", (4096, 576), 2 * _GLM_LAYER + _GLM_SCORING),
        ("gemma-4-26b-a4b", (2816, 529), _gemma(2816, 16, 2112, num_norms=7)),
        ("gemma-4-31b", (5376, 529), _gemma(5376, 32, 4 * 5376, num_norms=4)),  # has none
    ],
)
def test_experts_of_a_model_that_is_not_here_are_not_counted(
    name: str,
    sizes: tuple[int, int],
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """No RPN has any: with a layer's 604 M of them, a plan would be of 15 GB a resume point."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    profile = load_profile(name)
    found = model_dimensions(profile)
    layers = (found.text.num_hidden_layers, found.text.num_attention_heads)
    assert layers == (profile.num_layers, profile.num_heads)
    assert (found.text.hidden_size, found.num_cells) == sizes
    assert num_rpn_parameters(found.text, profile.rpn) == expected
