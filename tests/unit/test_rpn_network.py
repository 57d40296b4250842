"""The RPN against the stock model: before training it must score as the copied layer attends."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from data_contracts.profiles import ModelProfile, RpnShape
from sdrpn_core.attention.masks import ColumnMasks
from sdrpn_core.decoding.decoder import DecoderInput
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.llava import LlavaAdapter
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.rpn.network import RegionProposalNetwork
from tests.tiny_models import NUM_HEADS, NUM_LAYERS, tiny_llava

BRANCH = 2
LENGTHS = (31, 40, 28)
IMAGE_START = 2
NUM_CELLS = 25


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    return tiny_llava(tmp_path_factory.mktemp("tiny_llava"))


@pytest.fixture(scope="module")
def llava(profile: ModelProfile) -> ModelAdapter:
    return load_adapter(profile, device="cpu")


def with_text_model(llava: ModelAdapter, text_config: type, **extra: Any) -> ModelAdapter:
    """An adapter whose decoder is of another family (random weights)."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 17,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": 2,
        "initializer_range": 0.25,
        "pad_token_id": 0,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        ),
        text_config=text_config(**sizes | extra),
        image_token_id=4,
    )
    model = LlavaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            nn.init.normal_(parameter, mean=1.0, std=0.3)
    assert isinstance(llava, LlavaAdapter)
    return LlavaAdapter(model, llava.tokenizer, llava.profile, llava.image_processor)


@pytest.fixture(
    scope="module", params=["llama-1", "llama-2", "llama-4", "qwen2-bias", "qwen3-head-norms"]
)
def adapter(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, llava: ModelAdapter
) -> ModelAdapter:
    match str(request.param).split("-", 1):
        case "llama", heads:
            directory = tmp_path_factory.mktemp(request.param)
            return load_adapter(tiny_llava(directory, num_key_value_heads=int(heads)), device="cpu")
        case "qwen2", _:
            return with_text_model(llava, Qwen2Config)
        case _:
            return with_text_model(llava, Qwen3Config, head_dim=12)


def branch_inputs(adapter: ModelAdapter, seed: int = 0) -> list[Tensor]:
    """Hidden states at the branch layer, one (L, d) per sample."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [unpadded(torch.randn(1, length, 48, generator=generator)) for length in LENGTHS]
    with torch.no_grad():
        return [adapter.decoder.run(alone, range(BRANCH))[0] for alone in inputs]


def unpadded(hidden: Tensor) -> DecoderInput:
    """The input that a prompt of (1, L, d) hidden states makes on its own."""
    positions = torch.arange(hidden.shape[1])[None]
    return DecoderInput(hidden, ColumnMasks(torch.zeros_like(positions)), positions)


def score_alone(network: RegionProposalNetwork, hidden: Tensor) -> Tensor:
    length = len(hidden)
    logits: Tensor = network(
        hidden[None],
        masks=ColumnMasks(torch.zeros(1, length)),
        position_ids=torch.arange(length)[None],
        query_columns=torch.tensor([length - 1]),
        image_columns=torch.arange(IMAGE_START, IMAGE_START + NUM_CELLS)[None],
    )
    return logits[0]


def stock_query_and_key(adapter: ModelAdapter, hidden: Tensor, last_layer: int) -> dict[int, Any]:
    """What the stock layers hand to their attention kernel: {layer: (query, key)}, rotary done."""
    seen: dict[int, Any] = {}

    def spy(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        seen[module.layer_idx] = (query[0], key[0])
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("spy", spy)
    AttentionMaskInterface.register("spy", sdpa_mask)
    ours = adapter.decoder.text_model.config._attn_implementation
    try:
        adapter.model.set_attn_implementation({"text_config": "spy"})
        with torch.no_grad():
            adapter.decoder.run(unpadded(hidden[None]), range(BRANCH, last_layer + 1))
    finally:
        adapter.model.set_attn_implementation({"text_config": ours})
    return seen


def mean_dot_products(query: Tensor, key: Tensor) -> Tensor:
    """Loop oracle: mean over heads of q.k / sqrt(D), last query, image keys."""
    num_heads, num_key_heads = query.shape[0], key.shape[0]
    scores = [
        query[head, -1] @ key[head // (num_heads // num_key_heads), column] / query.shape[-1] ** 0.5
        for column in range(IMAGE_START, IMAGE_START + NUM_CELLS)
        for head in range(num_heads)
    ]
    return torch.stack(scores).view(NUM_CELLS, num_heads).mean(dim=1)


@pytest.mark.parametrize("depth", [1, 3])
def test_untrained_scores_are_the_stock_layers_own_query_times_key(
    adapter: ModelAdapter, depth: int
) -> None:
    shape = RpnShape(branch_layer=BRANCH, depth=depth, final_norm=False, rotary_scores=True)
    network = RegionProposalNetwork.from_adapter(adapter, shape)
    for hidden in branch_inputs(adapter):
        layer = BRANCH + depth - 1
        expected = mean_dot_products(*stock_query_and_key(adapter, hidden, layer)[layer])
        torch.testing.assert_close(score_alone(network, hidden), expected, atol=2e-5, rtol=1e-5)


def test_scores_without_rotary_use_the_projections_as_they_are(adapter: ModelAdapter) -> None:
    shape = RpnShape(branch_layer=BRANCH, depth=1, final_norm=False, rotary_scores=False)
    network = RegionProposalNetwork.from_adapter(adapter, shape)
    layer = adapter.decoder.layers[BRANCH]
    hidden = branch_inputs(adapter)[0]
    with torch.no_grad():
        normed = layer.input_layernorm(hidden)
        query, key = (
            _split(getattr(layer.self_attn, f"{name}_proj")(normed), layer.self_attn, name)
            for name in "qk"
        )
    torch.testing.assert_close(
        score_alone(network, hidden), mean_dot_products(query, key), atol=2e-5, rtol=1e-5
    )
    rotated = RegionProposalNetwork.from_adapter(
        adapter, shape.model_copy(update={"rotary_scores": True})
    )
    assert (score_alone(rotated, hidden) - score_alone(network, hidden)).abs().max() > 1e-3


def _split(projected: Tensor, attention: Any, name: str) -> Tensor:
    heads = projected.view(projected.shape[0], -1, attention.head_dim)
    norm: Callable[[Tensor], Tensor] = getattr(attention, f"{name}_norm", lambda values: values)
    return norm(heads).transpose(0, 1)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float8_e4m3fn, "buffers"])
def test_quantized_layers_are_refused(tmp_path: Path, kind: torch.dtype | str) -> None:
    """What torch said of them was no help."""
    adapter = load_adapter(tiny_llava(tmp_path), device="cpu")
    attention = adapter.decoder.layers[BRANCH].self_attn
    if isinstance(kind, torch.dtype):
        codes = torch.zeros(4).to(kind)
        attention.q_proj.weight = nn.Parameter(codes, requires_grad=False)
    else:
        attention.q_proj = nn.Module()
        attention.q_proj.register_buffer("qweight", torch.zeros(4, dtype=torch.int32))
    with pytest.raises(ModelError, match=r"layers 2 to 4 are quantized.* unquantized repository"):
        RegionProposalNetwork.from_adapter(adapter, adapter.profile.rpn)


def test_rotary_embedding_may_be_a_module(
    adapter: ModelAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers makes of the function where the package ``kernels`` is installed."""
    stock = sys.modules[type(adapter.decoder.layers[BRANCH].self_attn).__module__]
    function = stock.apply_rotary_pos_emb

    class Kernel(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    Kernel.forward.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    shape = RpnShape(branch_layer=BRANCH, depth=1, final_norm=False, rotary_scores=True)
    hidden = branch_inputs(adapter)[0]
    expected = score_alone(RegionProposalNetwork.from_adapter(adapter, shape), hidden)
    monkeypatch.setattr(stock, "apply_rotary_pos_emb", Kernel())
    found = score_alone(RegionProposalNetwork.from_adapter(adapter, shape), hidden)
    assert torch.equal(found, expected)


def test_final_norm_comes_before_the_input_norm(llava: ModelAdapter) -> None:
    shape = RpnShape(branch_layer=BRANCH, depth=1, final_norm=True)
    network = RegionProposalNetwork.from_adapter(llava, shape)
    with torch.no_grad():
        network.scoring.final_norm.weight.copy_(torch.linspace(0.5, 2, 48))
        network.scoring.input_norm.weight.copy_(torch.linspace(2, -1, 48))
    hidden = branch_inputs(llava)[0]
    normed = hidden.double()
    for norm in (network.scoring.final_norm, network.scoring.input_norm):
        scale = (normed.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
        normed = normed * scale * norm.weight.detach().double()
    attention = llava.decoder.layers[BRANCH].self_attn
    query, key = (
        _split(normed @ getattr(attention, f"{name}_proj").weight.double().T, attention, name)
        for name in "qk"
    )
    expected = mean_dot_products(query, key).float()
    torch.testing.assert_close(score_alone(network, hidden), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right", "right, causal mask only"])
def test_padded_batch_equals_one_by_one(adapter: ModelAdapter, side: str) -> None:
    shape = RpnShape(branch_layer=BRANCH, depth=3, rotary_scores=True)
    network = RegionProposalNetwork.from_adapter(adapter, shape)
    samples = branch_inputs(adapter)
    longest = max(LENGTHS)
    offsets = [longest - length if side == "left" else 0 for length in LENGTHS]
    batch = torch.full((len(samples), longest, 48), 7.0)  # loud padding
    key_mask = torch.zeros(len(samples), longest, dtype=torch.bool)
    positions = torch.zeros(len(samples), longest, dtype=torch.long)
    for row, (offset, hidden) in enumerate(zip(offsets, samples, strict=True)):
        batch[row, offset : offset + len(hidden)] = hidden
        key_mask[row, offset : offset + len(hidden)] = True
        positions[row, offset : offset + len(hidden)] = torch.arange(len(hidden))
    starts = torch.tensor(offsets)
    together = network(
        batch,
        masks=ColumnMasks(torch.zeros_like(positions), None if "only" in side else key_mask),
        position_ids=positions,
        query_columns=starts + torch.tensor(LENGTHS) - 1,
        image_columns=starts[:, None] + IMAGE_START + torch.arange(NUM_CELLS),
    )
    for row, hidden in zip(together, samples, strict=True):
        torch.testing.assert_close(row, score_alone(network, hidden), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("final_norm", [True, False])
def test_every_parameter_reaches_the_loss(
    adapter: ModelAdapter, depth: int, final_norm: bool
) -> None:
    """Reference defect 29: a vocabulary head and the last copy's v, o, MLP got no gradient."""
    shape = RpnShape(branch_layer=BRANCH, depth=depth, final_norm=final_norm)
    network = RegionProposalNetwork.from_adapter(adapter, shape)
    assert all(parameter.requires_grad for parameter in network.parameters())
    logits = score_alone(network, branch_inputs(adapter)[0])
    (logits * torch.linspace(-1, 2, NUM_CELLS)).sum().backward()
    dead = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    assert not dead


def test_training_does_not_touch_the_frozen_model(llava: ModelAdapter) -> None:
    before = {name: value.clone() for name, value in llava.model.state_dict().items()}
    network = RegionProposalNetwork.from_adapter(llava, llava.profile.rpn)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    score_alone(network, branch_inputs(llava)[0]).sum().backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in llava.model.parameters())
    assert not any(parameter.requires_grad for parameter in llava.model.parameters())
    for name, value in llava.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_scores_do_not_depend_on_call_history_or_the_models_settings(llava: ModelAdapter) -> None:
    """Reference defect 31: forward mutated layer indices and the cache."""
    network = RegionProposalNetwork.from_adapter(llava, llava.profile.rpn)
    first, second, _ = branch_inputs(llava)
    expected = score_alone(network, first)
    score_alone(network, second)
    assert torch.equal(score_alone(network, first), expected)
    assert network.layers[0].self_attn.config is not llava.decoder.text_model.config
    assert {id(p) for p in network.parameters()}.isdisjoint(id(p) for p in llava.model.parameters())


@pytest.mark.parametrize("autocast", [True, False])
def test_scores_are_float32_in_half_precision(llava: ModelAdapter, autocast: bool) -> None:
    network = RegionProposalNetwork.from_adapter(llava, llava.profile.rpn)
    hidden = branch_inputs(llava)[0]
    exact = score_alone(network, hidden)
    if not autocast:
        network.set_precision(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = score_alone(network, hidden if autocast else hidden.bfloat16())
    assert logits.dtype == torch.float32
    rounded = logits.bfloat16().float()
    assert (logits != rounded).any(), "the scores went through bfloat16"
    assert (logits - exact).abs().max() < 0.1 * exact.abs().max()


def test_half_precision_keeps_rotary_frequencies(llava: ModelAdapter) -> None:
    network = RegionProposalNetwork.from_adapter(llava, llava.profile.rpn)
    network.set_precision(torch.bfloat16)
    assert torch.equal(network.rotary_emb.inv_freq, llava.decoder.rotary_emb.inv_freq)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}


def test_too_many_layers_is_one_clear_line(llava: ModelAdapter) -> None:
    with pytest.raises(ModelError, match=r"copies layers 4 to 6, the model has 6"):
        RegionProposalNetwork.from_adapter(llava, RpnShape(branch_layer=4, depth=3))


@pytest.mark.parametrize(
    ("text_config", "culprit"),
    [(Phi3Config, "no k_proj and no q_proj"), (Olmo2Config, "layernorm")],
)
def test_unknown_layer_layout_is_one_clear_line(
    llava: ModelAdapter, text_config: type, culprit: str
) -> None:
    adapter = with_text_model(llava, text_config)
    with pytest.raises(ModelError, match=culprit):
        RegionProposalNetwork.from_adapter(adapter, llava.profile.rpn)
