"""Layers with experts: an RPN copies and trains all else, and calls the experts of the model."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from data_contracts.enums import QuestionKind
from data_contracts.label_settings import RegionSettings
from data_contracts.profiles import ModelProfile, RpnShape
from data_contracts.training import TrainingConfig
from sdrpn_core.attention.masks import ColumnMasks
from sdrpn_core.decoding.layer_pass import LayerPass, Rotations
from sdrpn_core.extraction.generated_answers import Request, capture_attention
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.rpn.checkpoint_files import CARD, CONFIG, WEIGHTS
from sdrpn_core.rpn.features import FrozenPrefix, collate
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.rpn.parameters import network_state
from sdrpn_core.rpn.shared_experts import SharedPart, copied_layer, shared_parts
from sdrpn_core.rpn.training import train_rpn
from sdrpn_core.zoom.first_stage import first_stage
from tests.families.glm import tiny_glm4v_moe
from tests.families.internvl import tiny_internvl_qwen3_moe
from tests.rpn_scenes import randomly_labelled
from tests.tiny_gemma import tiny_gemma4
from tests.tiny_models import tiny_llava, with_text_model
from tests.tiny_qwen import tiny_qwen3_5_moe, tiny_qwen3_vl_moe
from tests.zoom_checks import random_images

BUILDERS = {
    "gemma4": tiny_gemma4,
    "glm4v_moe": tiny_glm4v_moe,
    "qwen3_vl_moe": tiny_qwen3_vl_moe,
    "qwen3_5_moe": tiny_qwen3_5_moe,
}
IMAGES = random_images([(60, 40), (30, 50), (45, 45), (80, 20)])
QUESTIONS = ["what is it ?", "what is the small red word ?", "it", "red blue ?"]
MIXTURE = 2
"""A layer that has experts in every model, and is copied whole."""


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def profile(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ModelProfile:
    return BUILDERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def adapter(profile: ModelProfile) -> ModelAdapter:
    return load_adapter(profile, device="cpu")


def rpn_of(adapter: ModelAdapter) -> RegionProposalNetwork:
    return RegionProposalNetwork.from_adapter(adapter, adapter.profile.rpn)


def roi_maps(adapter: ModelAdapter, network: RegionProposalNetwork) -> Sequence[Tensor]:
    encoded = adapter.encode_images(IMAGES, for_labels=True)
    return first_stage(adapter, network, encoded, QUESTIONS).roi_logits


def training_logits(adapter: ModelAdapter, network: RegionProposalNetwork) -> Tensor:
    """(N, C) with their graph."""
    examples = randomly_labelled(adapter, IMAGES, QUESTIONS)
    branch = adapter.profile.rpn.branch_layer
    prefix = FrozenPrefix(adapter, image_of, branch_layer=branch, cache_bytes=2**20)
    ((part, features),) = prefix.of_parts([examples])
    return collate(features, part).logits(network)


def image_of(example: Any) -> Image.Image:
    return IMAGES[int(example.image_uri)]


def trained(adapter: ModelAdapter) -> RpnCheckpoint:
    return train_rpn(
        adapter,
        randomly_labelled(adapter, IMAGES, QUESTIONS),
        image_of,
        TrainingConfig(num_epochs=3, batch_size=3, learning_rate=1e-2),
        shape=adapter.profile.rpn,
        regions=RegionSettings.preset("default"),
        label_set="merge-labels/0123456789abcdef0123",
        micro_batch_size=3,
        cache_bytes=2**20,
    )


def is_shared(name: str) -> bool:
    return any(part in name for part in (".experts.", ".mlp.gate.", ".router."))


def mixture(adapter: ModelAdapter) -> tuple[Any, Any]:
    """Experts and router of a layer."""
    (experts, _), (router, _) = shared_parts(adapter.decoder.layers[MIXTURE])
    return experts, router


def keep_choices(network: RegionProposalNetwork) -> None:
    """Let routers choose as they first do: between experts as good, rounding would decide."""
    kept: dict[nn.Module, Any] = {}

    def first(part: nn.Module, _: Any, output: Any) -> Any:
        return kept.setdefault(part, output) if isinstance(output, tuple) else output

    for part in network.modules():
        if isinstance(part, SharedPart):
            part.register_forward_hook(first)


def test_a_copy_holds_all_of_a_layer_but_experts_and_router(adapter: ModelAdapter) -> None:
    """A shared expert, which every token meets, is a part like any other."""
    shape = adapter.profile.rpn
    network = rpn_of(adapter)
    stock = {
        f"layers.{index}.{name}": value
        for index in range(shape.depth - 1)
        for name, value in adapter.decoder.layers[shape.branch_layer + index].state_dict().items()
    }
    state = {n: v for n, v in network.state_dict().items() if n.startswith("layers.")}
    assert state.keys() == {name for name in stock if not is_shared(name)} != stock.keys()
    for name, value in state.items():
        assert torch.equal(value, stock[name])
        assert value.data_ptr() != stock[name].data_ptr()
    for_all = ("layers.0.mlp.shared_expert", "layers.0.mlp.up_proj")  # Gemma's is the dense one
    has_shared_expert = any(name.startswith(for_all) for name in state)
    assert has_shared_expert == (adapter.profile.family != "qwen3_vl_moe")
    assert network.shares_experts


def test_scores_and_gradients_are_those_of_copied_experts(
    adapter: ModelAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is trained learns through the experts as if they were its own."""
    sharing = rpn_of(adapter)
    with monkeypatch.context() as patched:
        patched.setattr("sdrpn_core.rpn.shared_experts.shared_parts", lambda layer: [])
        copying = rpn_of(adapter)
    for shared, copied in zip(roi_maps(adapter, sharing), roi_maps(adapter, copying), strict=True):
        torch.testing.assert_close(shared, copied)
    weights = torch.linspace(-1, 2, 25)
    for network in (sharing, copying):
        (training_logits(adapter, network) * weights).sum().backward()
    theirs = dict(copying.named_parameters())
    assert all(theirs[name].grad.abs().max() > 0 for name in theirs if is_shared(name))
    for name, parameter in sharing.named_parameters():
        largest = float(theirs[name].grad.abs().max())
        assert largest > 0
        torch.testing.assert_close(
            parameter.grad, theirs[name].grad, atol=1e-5 * largest, rtol=1e-4
        )
    assert all(parameter.grad is None for parameter in adapter.model.parameters())


@pytest.mark.parametrize("make", [rpn_of, lambda adapter: deepcopy(rpn_of(adapter))])
def test_scores_depend_on_the_models_experts(
    adapter: ModelAdapter, make: Callable[[ModelAdapter], RegionProposalNetwork]
) -> None:
    """They are called where they are: the comparison above would not notice a part without use.

    A copy of a network had experts of its own, several times as large as all the rest of it.
    """
    network = make(adapter)
    before = roi_maps(adapter, network)
    down = mixture(adapter)[0].down_proj
    kept = down.clone()
    try:
        with torch.no_grad():
            down.zero_()
        after = roi_maps(adapter, network)
    finally:
        with torch.no_grad():
            down.copy_(kept)
    assert all((b - a).abs().max() > 1e-3 for b, a in zip(before, after, strict=True))


def test_training_changes_every_weight_of_the_checkpoint_and_none_of_the_model(
    adapter: ModelAdapter, profile: ModelProfile
) -> None:
    before = {name: value.clone() for name, value in adapter.model.state_dict().items()}
    untrained = network_state(rpn_of(adapter))
    checkpoint = trained(adapter)
    assert all(torch.equal(v, before[n]) for n, v in adapter.model.state_dict().items())
    assert checkpoint.state.keys() == untrained.keys()
    same = {n for n, value in checkpoint.state.items() if torch.equal(value, untrained[n])}
    assert same == {n for n in untrained if n.endswith("layer_scalar")}  # Gemma's are no weights

    files = checkpoint.to_files()
    assert checkpoint.config.shares_experts
    assert b"shares_experts" in files[CONFIG]
    assert b"experts and\ntheir router are the model's own" in files[CARD]
    size = sum(value.nbytes for value in untrained.values())
    assert size < len(files[WEIGHTS]) < size + 10_000
    read = RpnCheckpoint.from_files(files)
    assert read.config == checkpoint.config
    other = load_adapter(profile, device="cpu")
    for mine, theirs in zip(
        roi_maps(adapter, checkpoint.build(adapter)),
        roi_maps(other, read.build(other)),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_a_model_without_experts_says_nothing_of_them(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Files of other families are the same bytes as before."""
    adapter = load_adapter(tiny_llava(tmp_path_factory.mktemp("llava")), device="cpu")
    files = trained(adapter).to_files()
    assert b"experts" not in files[CONFIG] + files[CARD]


def test_training_beside_a_model_in_half_precision(profile: ModelProfile) -> None:
    """The copy learns in float32, which experts of the model are not: torch refused the product."""
    adapter = load_adapter(profile, device="cpu", dtype="bfloat16")
    checkpoint = trained(adapter)
    assert {value.dtype for value in checkpoint.state.values()} == {torch.bfloat16}
    losses = [entry["loss"] for entry in checkpoint.metrics if entry["kind"] == "step"]
    assert len(losses) == 3
    network = rpn_of(adapter).set_precision(torch.float32)
    keep_choices(network)
    exact = training_logits(adapter, network)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = training_logits(adapter, network)
    assert exact.dtype == rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()


def test_experts_run_in_their_own_precision(profile: ModelProfile) -> None:
    """Whatever the copy is in, and autocast too: they choose and give what they do in the model.

    GLM's router is in float32 whatever the model is in: its scores were rounded for the experts.
    """
    own_experts, own_router = mixture(load_adapter(profile, device="cpu", dtype="bfloat16"))
    router, experts = SharedPart(own_router, own_experts), SharedPart(own_experts, own_experts)
    hidden = torch.randn(30, 48, generator=torch.Generator().manual_seed(0))
    _, scores, chosen = own_router(hidden.bfloat16())
    expected = own_experts(hidden.bfloat16(), chosen, scores)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            _, found_scores, found_chosen = router(hidden)
            found = experts(hidden, found_chosen, found_scores)
        assert torch.equal(found_chosen, chosen)
        assert torch.equal(found_scores, scores)
        assert found_scores.dtype == scores.dtype
        assert found.dtype == torch.float32
        assert torch.equal(found, expected.float())


def test_a_copied_layer_gives_what_the_layer_gives_in_half_precision(profile: ModelProfile) -> None:
    """Gemma 4 weighs its experts in single precision: the weights were rounded on their way."""
    adapter = load_adapter(profile, device="cpu", dtype="bfloat16")
    layer = adapter.decoder.layers[MIXTURE]
    copied = copied_layer(layer)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 300, layer.input_layernorm.weight.numel(), generator=generator)
    places = torch.arange(300)[None]
    positions = adapter.text_positions(places)
    masks = ColumnMasks(torch.zeros_like(places))
    with torch.inference_mode():
        rotations = Rotations(adapter.decoder.rotary_emb, hidden.bfloat16(), positions)
        columns = LayerPass(masks, positions, rotations)
        found, wanted = (columns.through(one, hidden.bfloat16()) for one in (copied, layer))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_ways_to_run_experts_give_the_same(profile: ModelProfile, implementation: str) -> None:
    """Copied layers run them as the model does, which is by grouped_mm unless it is told."""
    adapters = [load_adapter(profile, device="cpu") for _ in range(2)]
    usual = adapters[0].model.config.text_config
    assert usual._experts_implementation == "grouped_mm"
    adapters[1].model.set_experts_implementation(implementation)
    assert usual._experts_implementation == "grouped_mm"
    asked = [Request(i, q, QuestionKind.TEXTUAL) for i, q in zip(IMAGES, QUESTIONS, strict=True)]
    answers = [capture_attention(a, asked, {}, max_new_tokens=6).responses for a in adapters]
    assert answers[0] == answers[1]
    maps = [roi_maps(adapter, rpn_of(adapter)) for adapter in adapters]
    for one, other in zip(*maps, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_spread_model_shares_experts_with_its_rpn(
    profile: ModelProfile, adapter: ModelAdapter
) -> None:
    """Its modules have hooks, which move what they are given to where they are."""
    text = "model.language_model"
    names = [f"{text}.layers.{index}" for index in range(7)]
    names += [f"{text}.embed_tokens", f"{text}.norm", f"{text}.rotary_emb"]
    towers = [f"model.{name}" for name, _ in adapter.model.model.named_children()]
    names += [name for name in towers if name != text]
    placement = dict.fromkeys([*names, "lm_head"], "cpu")
    spread = load_adapter(profile, device_map=placement | {"lm_head": "disk"})
    assert mixture(spread)[0]._hf_hook
    for one, other in zip(
        roi_maps(spread, rpn_of(spread)), roi_maps(adapter, rpn_of(adapter)), strict=True
    ):
        torch.testing.assert_close(one, other)
    on_disk = placement | {f"{text}.layers.6": "disk"}
    if profile.family == "gemma4":  # its files hold experts as the model does
        assert load_adapter(profile, device_map=on_disk).decoder.layers[6].experts.down_proj.is_meta
        return
    with pytest.raises(ModelError, match=r"those of experts: device_map cannot leave them on disk"):
        load_adapter(profile, device_map=on_disk)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float8_e4m3fn, "buffers"])
def test_quantized_experts_are_refused(profile: ModelProfile, kind: torch.dtype | str) -> None:
    """Gradients would have to pass through them."""
    adapter = load_adapter(profile, device="cpu")
    experts, _ = mixture(adapter)
    if isinstance(kind, torch.dtype):
        experts.down_proj = nn.Parameter(torch.zeros(4).to(kind), requires_grad=False)
    else:
        del experts.gate_up_proj, experts.down_proj
        experts.register_buffer("qweight", torch.zeros(4, dtype=torch.int32))
    with pytest.raises(ModelError, match=r"layers 2 to 4 are quantized.* unquantized repository"):
        rpn_of(adapter)


def llava_mixtral(directory: Path) -> ModelProfile:
    return with_text_model(tiny_llava(directory / "llava"), directory / "mixtral", "mixtral")


@pytest.mark.parametrize("build", [tiny_internvl_qwen3_moe, llava_mixtral])
def test_experts_of_a_text_model_in_another_family_are_shared_too(
    build: Callable[[Path], ModelProfile], tmp_path: Path
) -> None:
    """As in InternVL3.5-30B-A3B: what a layer is made of says it, not the family's name."""
    adapter = load_adapter(build(tmp_path), device="cpu")
    network = RegionProposalNetwork.from_adapter(adapter, RpnShape(branch_layer=2, depth=3))
    stock = adapter.decoder.layers[2].state_dict()
    assert any("mlp.experts" in name for name in stock)
    found = {n.removeprefix("layers.0.") for n in network.state_dict() if n.startswith("layers.0.")}
    assert found == {n for n in stock if not n.startswith(("mlp.experts.", "mlp.gate."))}
