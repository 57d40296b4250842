"""Layers that hand on a state: padding is passed over, and states are not shared by accident."""

import json
import xml.etree.ElementTree as ET
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Cache, LlavaConfig, LlavaForConditionalGeneration, MiniMaxConfig
from transformers.cache_utils import LinearAttentionLayer

from data_contracts.enums import QuestionKind
from data_contracts.profiles import HeadSelection, ModelProfile, RpnShape
from sdrpn_core.attention.masks import ColumnMasks
from sdrpn_core.calibration import draft_profile
from sdrpn_core.calibration.examples import CalibrationError
from sdrpn_core.calibration.heat_map import render_heat_map
from sdrpn_core.calibration.scoring import HeadScore, LabelQuality
from sdrpn_core.decoding.cache_rows import CachePart, fork, join
from sdrpn_core.decoding.decoder import DecoderInput
from sdrpn_core.decoding.recurrent_layers import attention_layers, is_recurrent
from sdrpn_core.decoding.state import LayerSpan
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.rpn.size import num_rpn_parameters
from tests.families.lfm import tiny_lfm2_vl
from tests.tiny_models import tiny_llava
from tests.tiny_qwen import tiny_qwen3_5

HAVING_HEADS = (1, 4)
TOKENS = torch.tensor(
    [[0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0]]
)
LATER = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 1, 1], [1, 1, 0]])


@pytest.fixture(scope="module", params=[tiny_qwen3_5, tiny_lfm2_vl])
def profile(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ModelProfile:
    return request.param(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(profile: ModelProfile) -> ModelAdapter:
    return load_adapter(profile, device="cpu")


def inputs(adapter: ModelAdapter, hidden: Tensor, tokens: Tensor | None = None) -> DecoderInput:
    """For recurrent layers alone: they look at no positions."""
    positions = torch.zeros(hidden.shape[:2], dtype=torch.long)
    places = adapter.decoder.text_positions(positions)
    return DecoderInput(hidden, ColumnMasks(positions, tokens), places)


def states(layer: LinearAttentionLayer) -> list[Tensor]:
    """Gated delta nets have two, short convolutions one."""
    both = (layer.conv_states[0], layer.recurrent_states[0])
    return [state for state in both if state is not None]


@torch.inference_mode()
def run(adapter: ModelAdapter, hidden: Tensor, tokens: Tensor | None, cache: Cache) -> Tensor:
    return adapter.decoder.run(inputs(adapter, hidden, tokens), range(2, 4), cache=cache)


def test_which_layers_have_heads(adapter: ModelAdapter) -> None:
    assert attention_layers(adapter.model.config.text_config) == HAVING_HEADS
    layers = [
        index for index, layer in enumerate(adapter.decoder.layers) if not is_recurrent(layer)
    ]
    assert tuple(layers) == adapter.decoder.attention_layers == HAVING_HEADS


def test_columns_without_tokens_are_passed_over(adapter: ModelAdapter) -> None:
    """Of a first pass and of one that goes on: output and states are those of the tokens alone."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(4, length, 48, generator=generator) for length in (6, 3))
    cache = adapter.decoder.new_cache()
    found = [
        run(adapter, hidden, tokens.bool(), cache)
        for hidden, tokens in ((first, TOKENS), (second, LATER))
    ]
    for row in range(len(TOKENS)):
        own = adapter.decoder.new_cache()
        for hidden, tokens, output in zip((first, second), (TOKENS, LATER), found, strict=True):
            kept = tokens[row].bool()
            alone = run(adapter, hidden[row, kept][None], None, own)
            torch.testing.assert_close(output[row, kept], alone[0], atol=1e-4, rtol=1e-4)
        for index in (2, 3):
            for whole, part in zip(
                states(cache.layers[index]), states(own.layers[index]), strict=True
            ):
                torch.testing.assert_close(whole[row], part[0], atol=1e-4, rtol=1e-4)


def test_a_fork_goes_on_by_itself(adapter: ModelAdapter) -> None:
    """A state is changed in place, where keys and values are put behind others."""
    hidden = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(1))
    cache = adapter.decoder.new_cache()
    run(adapter, hidden, None, cache)
    before = [state.clone() for state in states(cache.layers[2])]
    forked = fork(cache, torch.tensor([0, 1]))
    run(adapter, hidden[:, :1], None, forked)
    for state, kept, changed in zip(
        states(cache.layers[2]), before, states(forked.layers[2]), strict=True
    ):
        assert torch.equal(state, kept)
        assert not torch.equal(state, changed)


def test_parts_of_a_batch_come_to_their_places(adapter: ModelAdapter) -> None:
    hidden = torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(2))
    whole = adapter.decoder.new_cache()
    run(adapter, hidden, None, whole)
    parts = []
    for rows in (torch.tensor([1]), torch.tensor([0, 2])):
        cache = adapter.decoder.new_cache()
        run(adapter, hidden[rows], None, cache)
        mask = torch.ones(len(rows), 5, dtype=torch.bool)
        parts.append(CachePart(cache, (LayerSpan(0, 7, mask),), rows))
    joined, _ = join(parts)
    for mine, theirs in zip(states(joined.layers[3]), states(whole.layers[3]), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_heads_are_refused_where_a_layer_has_none(profile: ModelProfile) -> None:
    heads = {QuestionKind.NATURAL: HeadSelection(grounding={1: (0,), 2: (1,)})}
    with pytest.raises(ModelError, match=r"heads of layer 2 for natural.*only layers 1, 4 have"):
        load_adapter(profile.model_copy(update={"heads": heads}), device="cpu")


def test_an_rpn_that_ends_in_a_layer_without_heads_is_refused(
    profile: ModelProfile, adapter: ModelAdapter
) -> None:
    """It scores with the query and key of its last layer."""
    shape = RpnShape(branch_layer=2, depth=2)
    wanted = r"ends its RPN with layer 3.*one of 1, 4"
    with pytest.raises(ModelError, match=wanted):
        load_adapter(profile.model_copy(update={"rpn": shape}), device="cpu")
    with pytest.raises(ModelError, match=wanted):
        RegionProposalNetwork.from_adapter(adapter, shape)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (RpnShape(branch_layer=2, depth=2), "DecoderLayer has no k_proj and no q_proj"),
        (RpnShape(branch_layer=6, depth=2), "copies layers 6 to 7, the model has 7"),
    ],
)
def test_the_size_of_an_rpn_that_does_not_fit_is_refused(
    adapter: ModelAdapter, shape: RpnShape, message: str
) -> None:
    """A plan was a traceback where a run is told what to change."""
    with pytest.raises(ModelError, match=message):
        num_rpn_parameters(adapter.model.config.text_config, shape)


def test_layers_that_keep_something_else_are_refused(tmp_path: Path) -> None:
    """MiniMax's lightning attention looks like attention, and hands on a state."""
    profile = tiny_llava(tmp_path).model_copy(update={"heads": {}})
    vision = LlavaConfig.from_pretrained(tmp_path).vision_config
    text = MiniMaxConfig(
        vocab_size=17,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        layer_types=["full_attention", "linear_attention"] * 3,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=4,
        vision_feature_layer=-1,
        image_seq_length=25,
    )
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"layer 1 keeps of earlier columns is not known"):
        load_adapter(profile, device="cpu")


def test_a_heat_map_leaves_no_room_for_layers_without_heads() -> None:
    """Of a model of 32 layers, three rows of four were blank."""
    none = LabelQuality(**dict.fromkeys(LabelQuality.model_fields, 0.0))
    scores = [
        HeadScore(
            layer=layer,
            head=head,
            foreground=none,
            mass_inside=0.0,
            points_inside=0.0,
            image_attention=0.0,
        )
        for layer, head in product(HAVING_HEADS, range(2))
    ]
    picture = ET.fromstring(
        render_heat_map({QuestionKind.NATURAL: scores}, {QuestionKind.NATURAL: ((4, 1),)})
    )
    cells = [element for element in picture.iter() if element.tag.endswith("rect")][1:]
    rows = sorted({float(cell.attrib["y"]) for cell in cells if "rgb" in cell.attrib["fill"]})
    side = float(cells[0].attrib["height"])
    assert rows == [rows[0], rows[0] + side]
    (outline,) = [cell for cell in cells if cell.attrib["fill"] == "none"]
    assert float(outline.attrib["y"]) == rows[1] + 1


def test_no_draft_where_no_rpn_can_end_in_a_layer_with_heads(tmp_path: Path) -> None:
    tiny_qwen3_5(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["layer_types"] = ["full_attention", *["linear_attention"] * 6]
    file.write_text(json.dumps(config))
    with pytest.raises(CalibrationError, match="only layers 0 of 7 have attention heads"):
        draft_profile(str(tmp_path))


def test_an_rpn_takes_queries_without_their_gates(tmp_path: Path) -> None:
    adapter = load_adapter(tiny_qwen3_5(tmp_path), device="cpu")
    network = RegionProposalNetwork.from_adapter(adapter, RpnShape(branch_layer=2, depth=3))
    stock = adapter.decoder.layers[4].self_attn
    by_head = stock.q_proj.weight.view(4, 2, 16, 48)
    assert torch.equal(network.scoring.q_proj.weight.view(4, 16, 48), by_head[:, 0])
    hidden = torch.randn(3, 48, generator=torch.Generator().manual_seed(3))
    assert network.scoring.q_proj(hidden).shape == (3, 64)
