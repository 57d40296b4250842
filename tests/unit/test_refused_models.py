"""Models that cannot be used are refused in one line that says why, before any work is done."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    PixtralVisionConfig,
    SiglipVisionConfig,
)

from data_contracts.configs import ModelConfig
from data_contracts.profiles import ModelProfile, RpnShape
from data_contracts.runtime import RuntimeConfig
from sdrpn_core.calibration.draft import draft_profile
from sdrpn_core.calibration.examples import CalibrationError
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.families import FAMILIES
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.not_driven import REASONS, TEXT_MODELS
from sdrpn_core.models.stock_model import stock_config
from sdrpn_core.rpn.copied_layers import check_copyable
from sdrpn_core.rpn.network import RegionProposalNetwork
from tasks.models import adapter_for_labels
from tests.tiny_models import tiny_llava, with_text_model, with_tower
from tests.zoom_checks import random_images


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    return tiny_llava(tmp_path_factory.mktemp("model"))


def change(file: str, **changes: Any) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        settings = json.loads((model / file).read_text())
        inner = settings["text_config"] if file == "config.json" else settings
        inner |= changes
        (model / file).write_text(json.dumps(settings))

    return edit


def torn_bin(kept: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Weights in torch's own format, of which something is kept."""

    def edit(model: Path) -> None:
        whole = model / "model.safetensors"
        torch.save(load_file(whole), model / "pytorch_model.bin")
        whole.unlink()
        data = (model / "pytorch_model.bin").read_bytes()
        (model / "pytorch_model.bin").write_bytes(kept(data))

    return edit


def empty_index(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    (model / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {}}')


def write(file: str, text: str) -> Callable[[Path], None]:
    return lambda model: (model / file).write_text(text) and None


def remove_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()


def newer_family(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "of_tomorrow"}))


class Odd:
    """Something that weights do not hold."""


def odd_pickle(model: Path) -> None:
    whole = model / "model.safetensors"
    torch.save({**load_file(whole), "odd": Odd()}, model / "pytorch_model.bin")
    whole.unlink()


COMPASS = {
    "layer_types": ["full_attention" if layer == 3 else "sliding_attention" for layer in range(6)],
    "rope_parameters": {
        "sliding_attention": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [2, 2, 2],
        },
        "full_attention": None,
    },
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 200\n"
LINEAR = {"rope_type": "linear", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (torn_bin(lambda data: data[: len(data) // 2]), r"corrupted weights \(Pyt.*: copy the dir"),
        (torn_bin(lambda data: b""), r"corrupted weights \(.*: copy the directory anew"),
        (
            torn_bin(lambda data: POINTER.encode()),
            r"corrupted weights \(no file of weights\): copy",
        ),
        (odd_pickle, r"has weights in a pickle that holds more than tensors, .*: take the model's"),
        (newer_family, r"cannot be loaded: .*`of_tomorrow` but Transformers does not recognize"),
        (empty_index, r"has settings that transformers cannot use \(IndexError"),
        (change("config.json", rms_norm_eps=1), r"'rms_norm_eps' expected float, got int.*: mend"),
        (change("config.json", hidden_act="foo"), r"\(KeyError: 'foo'\): mend its JSON files"),
        (change("config.json", rope_parameters=LINEAR), r"'rope_type'='linear': {'factor'}"),
        (change("generation_config.json", pad_token_id=[0]), r"settings that .*TypeError"),
        (change("generation_config.json", suppress_tokens=[500]), r"names token 500, .* has 17"),
        (change("generation_config.json", eos_token_id=[77]), r"names token 77, .* has 17: take"),
        (write("generation_config.json", POINTER), r"configuration file that is not JSON"),
        (write("tokenizer.json", "{}"), r"has settings that .*KeyError: 'added_tokens'"),
        (remove_tokenizer, r"has no tokenizer.json, and nothing .*: copy the directory anew"),
    ],
)
def test_spoilt_folders_are_told_in_one_line(
    profile: ModelProfile, tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    """Tracebacks, or (settings of generation) answers without an end and without a word."""
    folder = tmp_path / "model"
    shutil.copytree(profile.model_id, folder)
    spoil(folder)
    with pytest.raises(ModelError, match=told) as caught:
        load_adapter(profile.model_copy(update={"model_id": str(folder)}), device="cpu")
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("device_map", "told"),
    [
        ({}, "device_map is empty: map '' to a device"),
        ({"": "cuda:97"}, "device 'cuda:97' cannot be used .*: choose auto, cpu"),
        ({"": "cpu", "lm_head": 97}, "device 'cuda:97' cannot be used"),
    ],
)
def test_device_maps_name_devices_that_are_there(
    profile: ModelProfile, device_map: dict[str, int | str], told: str
) -> None:
    """Torch's own words, with a traceback."""
    with pytest.raises(ModelError, match=told):
        load_adapter(profile, device_map=device_map)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_from_the_hub_is_refused(profile: ModelProfile, tmp_path: Path, key: str) -> None:
    """Only a package that was not installed kept transformers from fetching it."""
    shutil.copytree(profile.model_id, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: "someone/kernel"}))
    with pytest.raises(ModelError, match=r"asks for attention code from the hub \(someone/kernel"):
        stock_config(str(tmp_path))


@pytest.mark.parametrize("answer", ["", "y\n"])
def test_code_beside_a_model_is_never_run(
    profile: ModelProfile, tmp_path: Path, answer: str
) -> None:
    """It was asked for on the terminal, and run at a `y`."""
    shutil.copytree(profile.model_id, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "other", "auto_map": {"AutoConfig": "configuration_x.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "configuration_x.py").write_text(
        "from transformers import PretrainedConfig\n"
        "print('IT RUNS')\n"
        "class Config(PretrainedConfig):\n    model_type = 'other'\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "flows", "calibrate", "--model", str(tmp_path), "--out", "o"],
        input=answer,
        env=os.environ | {"HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stdout == ""
    said = " ".join(run.stderr.split())
    assert "needs Python code that lies beside its files, which is never run here: name" in said
    assert "IT RUNS" not in said
    assert "[y/N]" not in said


def test_a_family_without_an_adapter_is_not_sent_to_a_profile(
    profile: ModelProfile, tmp_path: Path
) -> None:
    """It said to choose the model's own profile, which there cannot be."""
    shutil.copytree(profile.model_id, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "vipllava"}))
    told = r"is of family 'vipllava', which no adapter drives; known are .*: choose a model of"
    with pytest.raises(ModelError, match=told):
        load_adapter(profile.model_copy(update={"model_id": str(tmp_path)}), device="cpu")


@pytest.mark.parametrize("family", sorted(REASONS))
def test_a_family_that_cannot_be_driven_is_told_why_before_weights_are_fetched(
    profile: ModelProfile, family: str, tmp_path: Path
) -> None:
    """It was told as one that only waits for an adapter. Transformers knows each by this name."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    told = re.escape(f"which no adapter drives ({REASONS[family]}); known are aya_vision, ")
    with pytest.raises(ModelError, match=told):
        load_adapter(profile.model_copy(update={"model_id": str(tmp_path)}), device="cpu")
    with pytest.raises(CalibrationError, match=told):
        draft_profile(str(tmp_path))
    named = profile.model_copy(update={"family": family})
    with pytest.raises(
        ModelError, match=re.escape(f"unknown family '{family}' ({REASONS[family]}")
    ):
        load_adapter(named, device="cpu")


@pytest.mark.parametrize("kind", sorted(TEXT_MODELS))
def test_a_text_model_that_cannot_be_driven_is_told_before_weights_are_fetched(
    profile: ModelProfile, kind: str, tmp_path: Path
) -> None:
    """It was told once all weights were loaded: Mistral Small 4's take 240 GB."""
    sizes = {"num_hidden_layers": profile.num_layers, "num_attention_heads": profile.num_heads}
    config = {"model_type": "llava", "text_config": {"model_type": kind, **sizes}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    told = re.escape(f"its text model ({kind}) cannot be driven ({TEXT_MODELS[kind]}): use a")
    with pytest.raises(ModelError, match=told):
        load_adapter(profile.model_copy(update={"model_id": str(tmp_path)}), device="cpu")
    with pytest.raises(ModelError, match=told):
        draft_profile(str(tmp_path))


def test_no_family_is_both_driven_and_not() -> None:
    assert not FAMILIES.keys() & REASONS.keys()


def test_towers_that_show_rows_of_any_number_are_refused(
    profile: ModelProfile, tmp_path: Path
) -> None:
    """Its images were one block of tokens, without those that end its rows."""
    other = with_tower(profile, tmp_path, PixtralVisionConfig, "full")
    with pytest.raises(ModelError, match=r"its vision tower \(pixtral\) shows images in rows of"):
        load_adapter(other, device="cpu")


def test_a_dropped_token_is_told_by_its_strategy(profile: ModelProfile, tmp_path: Path) -> None:
    """It named the strategy that is right here as the one that is wrong."""
    other = with_tower(profile, tmp_path, SiglipVisionConfig, "default")
    adapter = load_adapter(other, device="cpu")
    told = r"gives 24 tokens for a grid of 5 by 5 cells.*'full' for those without such a token"
    with pytest.raises(ModelError, match=told):
        adapter.encode_images(random_images([(40, 40)]))


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        ("phi3", {}, r"Phi3DecoderLayer has no k_proj and no q_proj"),
        ("olmo2", {}, r"Olmo2DecoderLayer has no input_layernorm"),
        ("cohere", {"use_qk_norm": True}, r"[qk]_norm of CohereAttention spans all heads at once"),
        ("hunyuan_v1_dense", {"head_dim": 12}, r"has a key_layernorm, which .* would leave out"),
    ],
)
def test_a_model_that_no_rpn_can_be_copied_from_is_refused_before_extraction(
    profile: ModelProfile, tmp_path: Path, kind: str, settings: dict[str, Any], told: str
) -> None:
    """It was refused when training began, after hours of extraction; HunYuan's was silent."""
    other = with_text_model(profile, tmp_path, kind, **settings)
    model = ModelConfig(profile=other)
    with pytest.raises(ModelError, match=told):
        adapter_for_labels(model, RuntimeConfig(store=str(tmp_path), device="cpu"))


@pytest.mark.parametrize(
    ("kind", "settings", "turns_heads"),
    [
        ("smollm3", {}, lambda attention: bool(attention.use_rope)),
        ("cohere2", {}, lambda attention: attention.sliding_window is not None),
        ("cohere_compass_text", COMPASS, lambda attention: attention.sliding_window is not None),
    ],
)
def test_layers_that_turn_nothing_score_without_rotary(
    profile: ModelProfile,
    tmp_path: Path,
    kind: str,
    settings: dict[str, Any],
    turns_heads: Callable[[Any], bool],
) -> None:
    """Every fourth layer of theirs has no rotary embedding; its copy turned all the same."""
    adapter = load_adapter(with_text_model(profile, tmp_path, kind, **settings), device="cpu")
    turning = [turns_heads(layer.self_attn) for layer in adapter.decoder.layers]
    assert set(turning) == {True, False}
    for last, turns in enumerate(turning):
        if last < 2:
            continue
        shape = RpnShape(branch_layer=last, depth=1, rotary_scores=True)
        check_copyable(adapter, shape)
        scoring = RegionProposalNetwork.from_adapter(adapter, shape).scoring
        assert (scoring.rotary is not None) is turns


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        ("nemotron", {}, r"the attention of its text model \(NemotronModel\) cannot be read in la"),
        (
            "deepseek_v3",
            {
                "num_key_value_heads": 4,
                "kv_lora_rank": 16,
                "q_lora_rank": 16,
                "qk_nope_head_dim": 8,
                "qk_rope_head_dim": 8,
                "v_head_dim": 12,
                "n_routed_experts": 4,
                "n_group": 1,
                "topk_group": 1,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
            },
            r"its text model cannot be run layer by layer \(.*head_dim",
        ),
    ],
)
def test_attention_that_cannot_be_read_is_refused_at_load(
    profile: ModelProfile, tmp_path: Path, kind: str, settings: dict[str, Any], told: str
) -> None:
    """The first layer that was asked for was a KeyError in extraction."""
    other = with_text_model(profile, tmp_path, kind, **settings)
    with pytest.raises(ModelError, match=told):
        load_adapter(other, device="cpu")
