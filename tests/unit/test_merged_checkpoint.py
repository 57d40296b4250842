"""Full checkpoints that we write: the authors' names, the model's weights, the RPN bit by bit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from data_contracts.label_settings import RegionSettings
from data_contracts.profiles import ModelProfile
from sdrpn_core.interop.merged_checkpoint import MergeError, merge
from sdrpn_core.interop.published_checkpoint import Overrides, read_published_rpn
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.stock_model import load_stock_model
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.rpn.score_calibration import ScoreCalibration
from tests.published import (
    llava_tensors,
    published_config,
    published_llava,
    qwen_tensors,
    random_rpn,
    twig_tensors,
    write_checkpoint,
)
from tests.tiny_qwen import tiny_qwen2_5_vl

Published = tuple[Path, ModelProfile, RegionProposalNetwork]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return published_llava(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def rpn(published: Published) -> RpnCheckpoint:
    return read_published_rpn(published[0], [published[1]], Overrides())


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def tensors_in(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return found


def test_llava_is_written_as_it_is_published(
    published: Published, rpn: RpnCheckpoint, tmp_path: Path
) -> None:
    folder, profile, network = published
    stock = load_stock_model(profile.model_id, None)
    out = write(tmp_path / "out", dict(merge(stock.model, rpn).files(20_000)))
    written = tensors_in(out)
    decoder = stock.model.get_decoder()
    expected = llava_tensors(stock.model) | twig_tensors(decoder, network, profile.rpn)
    for name, tensor in expected.items():
        assert torch.equal(written[name], tensor), name
    # A tower of one's own travels with the model; the authors load the stock one.
    others = written.keys() - expected.keys()
    assert all(name.startswith("model.vision_tower.vision_tower.vision_model.") for name in others)
    assert len(others) == len(stock.model.model.vision_tower.state_dict())
    ours, theirs = (json.loads((at / "config.json").read_text()) for at in (out, folder))
    assert theirs.items() <= ours.items()
    assert ours["architectures"] == ["LlavaLlamaForCausalLM"]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == written.keys()
    assert len(set(index["weight_map"].values())) > 3
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in written.values())


def test_import_of_an_export_is_the_same_rpn(
    published: Published, rpn: RpnCheckpoint, tmp_path: Path
) -> None:
    """Bit by bit, in a precision of its own, with its settings; also without our own file."""
    half = replace(
        rpn,
        config=rpn.config.model_copy(update={"dtype": "bfloat16", "threshold": 0.35}),
        state={name: value.bfloat16() for name, value in rpn.state.items()},
    )
    stock = load_stock_model(published[1].model_id, None)
    out = write(tmp_path / "out", dict(merge(stock.model, half).files(10**9)))
    assert (out / "model.safetensors").is_file()
    again = read_published_rpn(out, [], Overrides())
    assert again.to_files() == half.to_files()
    (out / "sdrpn_rpn.json").unlink()
    bare = read_published_rpn(out, [published[1]], Overrides())
    assert bare.config.dtype == "bfloat16"
    assert bare.state.keys() == half.state.keys()
    assert all(torch.equal(bare.state[name], half.state[name]) for name in half.state)


def test_what_is_given_with_an_export_replaces_that_and_nothing_else(
    published: Published, rpn: RpnCheckpoint, tmp_path: Path
) -> None:
    tuned = {
        "threshold": 0.35,
        "score_calibration": ScoreCalibration(scale=0.4, offset=-1.5),
        "regions": RegionSettings(min_box_side=17),
    }
    ours = replace(rpn, config=rpn.config.model_copy(update=tuned))
    stock = load_stock_model(published[1].model_id, None)
    out = write(tmp_path / "out", dict(merge(stock.model, ours).files(10**9)))
    renamed = published[1].model_copy(update={"name": "mine", "prompt": "{images} {question}"})
    assert renamed.rpn == ours.config.shape
    regions = RegionSettings(min_box_side=20)
    given: list[tuple[Overrides, dict[str, object]]] = [
        (Overrides(threshold=0.0), {"threshold": 0.0}),
        (Overrides(regions=regions), {"regions": regions}),
        (Overrides(branch_layer=ours.config.shape.branch_layer), {}),
        (Overrides(profile=renamed), {"profile": renamed}),
    ]
    for overrides, changed in given:
        found = read_published_rpn(out, [], overrides)
        assert found.config == ours.config.model_copy(update=changed)


@pytest.mark.parametrize("tied", [False, True])
def test_qwen_is_written_as_it_is_published_and_loads_as_the_stock_model(
    tied: bool, tmp_path: Path
) -> None:
    profile = tiny_qwen2_5_vl(tmp_path / "model")
    config = Qwen2_5_VLConfig.from_pretrained(tmp_path / "model")
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    shape = profile.rpn
    network = random_rpn(model.get_decoder(), shape)
    twig = twig_tensors(model.get_decoder(), network, shape)
    tensors = qwen_tensors(model) | twig
    folder = write_checkpoint(
        tmp_path / "theirs", tensors, published_config(model, "qwen2_5_vl", shape)
    )
    rpn = read_published_rpn(folder, [profile], Overrides())
    out = write(tmp_path / "out", dict(merge(model, rpn).files(10**9)))
    written = tensors_in(out)
    assert written.keys() == tensors.keys() - ({"lm_head.weight"} if tied else set())
    for name, tensor in written.items():
        assert torch.equal(tensor, tensors[name]), name
    loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(out).eval()
    ids = torch.tensor([[9, 10, 11, 12]])
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_what_does_not_fit_is_refused(published: Published, rpn: RpnCheckpoint) -> None:
    model = load_adapter(published[1], device="cpu").model

    def with_profile(**changed: object) -> RpnCheckpoint:
        profile = rpn.config.profile.model_copy(update=changed)
        return replace(rpn, config=rpn.config.model_copy(update={"profile": profile}))

    with pytest.raises(MergeError, match="no checkpoint of family 'deepseek_vl', only llava"):
        merge(model, with_profile(family="deepseek_vl"))
    with pytest.raises(MergeError, match="40 layers x 4 heads, the model has 6 x 4"):
        merge(model, with_profile(num_layers=40))
    wide = {name: torch.zeros(2, 2) for name in rpn.state}
    with pytest.raises(MergeError, match="has no counterpart in the model"):
        merge(model, replace(rpn, state=wide))
