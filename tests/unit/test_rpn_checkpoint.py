"""RPN checkpoints: round trip, refusals, model card."""

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load, save

from data_contracts.label_settings import RegionSettings
from data_contracts.profiles import ModelProfile, RpnShape
from data_contracts.training import TrainingConfig
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.rpn.checkpoint_files import CARD, CONFIG, METRICS, WEIGHTS, CheckpointError
from sdrpn_core.rpn.config import RpnConfig
from sdrpn_core.rpn.model_card import render_model_card
from sdrpn_core.rpn.training import train_rpn
from tasks.rpn_files import save_checkpoint
from tests.rpn_scenes import bright_patch_examples, loader
from tests.tiny_models import tiny_llava


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    return tiny_llava(tmp_path_factory.mktemp("tiny_llava"))


@pytest.fixture(scope="module")
def adapter(profile: ModelProfile) -> ModelAdapter:
    return load_adapter(profile, device="cpu")


@pytest.fixture(scope="module")
def checkpoint(adapter: ModelAdapter) -> RpnCheckpoint:
    examples, images = bright_patch_examples(12)
    return train_rpn(
        adapter,
        examples,
        loader(images),
        TrainingConfig(batch_size=4, learning_rate=1e-3),
        shape=adapter.profile.rpn,
        regions=RegionSettings.preset("default"),
        label_set="merge-labels/0123456789abcdef0123",
        micro_batch_size=4,
        cache_bytes=2**30,
    )


@pytest.fixture
def files(checkpoint: RpnCheckpoint) -> dict[str, bytes]:
    return checkpoint.to_files()


def write(directory: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return directory


def with_config(files: dict[str, bytes], **changed: Any) -> dict[str, bytes]:
    return files | {CONFIG: json.dumps(json.loads(files[CONFIG]) | changed).encode()}


def test_round_trip_through_a_folder(
    checkpoint: RpnCheckpoint, files: dict[str, bytes], tmp_path: Path, adapter: ModelAdapter
) -> None:
    save_checkpoint(checkpoint, tmp_path / "new" / "rpn")
    loaded = RpnCheckpoint.load_directory(tmp_path / "new" / "rpn")
    assert loaded.config == checkpoint.config
    assert loaded.metrics == checkpoint.metrics
    assert loaded.to_files() == files
    network = loaded.build(adapter)
    for name, value in network.state_dict().items():
        assert torch.equal(value, checkpoint.state[name])
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_trained_weights_are_loaded_not_the_models(
    checkpoint: RpnCheckpoint, adapter: ModelAdapter
) -> None:
    trained = checkpoint.build(adapter).scoring.q_proj.weight
    layer = adapter.decoder.layers[checkpoint.config.shape.branch_layer + 2]
    assert not torch.equal(trained, layer.self_attn.q_proj.weight)


def test_config_alone_describes_the_model(files: dict[str, bytes], profile: ModelProfile) -> None:
    config = RpnConfig.model_validate_json(files[CONFIG])
    assert config.profile == profile
    assert config.label_set == "merge-labels/0123456789abcdef0123"
    assert config.data.num_train + config.data.num_validation == 12


def test_an_rpn_says_for_which_regions_its_threshold_is(checkpoint: RpnCheckpoint) -> None:
    """Two RPNs of the same weights were told apart by their ids alone."""
    config = checkpoint.config
    assert "regions" not in config.origin
    other = config.regions.with_changes(margin_cells=1.0, mask_threshold_ratio=None)
    origin = config.model_copy(update={"regions": other}).origin
    assert origin.endswith(", regions with margin_cells 1.0, mask_threshold_ratio null")


def test_one_question_is_no_questions(checkpoint: RpnCheckpoint) -> None:
    data = checkpoint.config.data
    assert data is not None
    of_one = data.model_copy(update={"num_train": 1})
    origin = checkpoint.config.model_copy(update={"data": of_one}).origin
    assert ", trained on 1 question, " in origin


def test_the_card_says_what_answering_does_otherwise_than_the_paper(
    checkpoint: RpnCheckpoint,
) -> None:
    config = checkpoint.config
    assert "Unless told otherwise" not in render_model_card(config)
    for changes, said in (
        ({"crop_tokens": 36}, "answers with crops of at most 36 tokens."),
        ({"withdraw_image": True}, "answers with the image in view of the layers below the branch"),
        ({"crop_tokens": 36, "withdraw_image": True}, "at most 36 tokens and the image in view"),
        (
            {"crop_tokens": 36, "mask_tower": True, "withdraw_image": True},
            "36 tokens, what masked crops hide left out of the vision tower too and the image in",
        ),
    ):
        regions = config.regions.with_changes(**changes)
        assert said in render_model_card(config.model_copy(update={"regions": regions}))


def test_log_and_card_are_not_needed(files: dict[str, bytes]) -> None:
    del files[METRICS], files[CARD]
    assert RpnCheckpoint.from_files(files).metrics == ()


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_missing_file_is_named(files: dict[str, bytes], name: str) -> None:
    del files[name]
    with pytest.raises(CheckpointError, match=f"no {name}"):
        RpnCheckpoint.from_files(files)


def test_folder_without_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no rpn\.safetensors"):
        RpnCheckpoint.load_directory(tmp_path / "nowhere")


@pytest.mark.parametrize(("kind", "num_bytes"), [("F4", 1), ("F8_E8M0", 2)])
def test_weights_of_a_type_that_torch_cannot_read_are_refused(
    files: dict[str, bytes], kind: str, num_bytes: int
) -> None:
    header = json.dumps({"a": {"dtype": kind, "shape": [2], "data_offsets": [0, num_bytes]}})
    weights = len(header).to_bytes(8, "little") + header.encode() + bytes(num_bytes)
    with pytest.raises(CheckpointError, match=r"rpn\.safetensors is damaged"):
        RpnCheckpoint.from_files(files | {WEIGHTS: weights})


def test_truncated_weights_are_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(CheckpointError, match=r"rpn\.safetensors is damaged"):
        RpnCheckpoint.from_files(files | {WEIGHTS: files[WEIGHTS][:-10]})


@pytest.mark.parametrize("log", [b'{"kind": "step", "lo', b"\xff\xfe"])
def test_damaged_log_is_named(files: dict[str, bytes], log: bytes) -> None:
    """A traceback of JSON's, for a file that answering does not need."""
    told = r"rpn: metrics.jsonl is damaged \(.*\); copy it anew, or delete it"
    with pytest.raises(CheckpointError, match=told):
        RpnCheckpoint.from_files(files | {METRICS: log}, "rpn")


def test_missing_parameter_is_named(files: dict[str, bytes], adapter: ModelAdapter) -> None:
    state = load(files[WEIGHTS])
    del state["scoring.k_proj.weight"]
    loaded = RpnCheckpoint.from_files(files | {WEIGHTS: save(state)})
    with pytest.raises(CheckpointError, match=r"parameter scoring\.k_proj\.weight is missing"):
        loaded.build(adapter)


def test_unknown_parameter_is_named(files: dict[str, bytes], adapter: ModelAdapter) -> None:
    state = load(files[WEIGHTS]) | {"head.weight": torch.zeros(3)}
    loaded = RpnCheckpoint.from_files(files | {WEIGHTS: save(state)})
    with pytest.raises(CheckpointError, match=r"parameter head\.weight is not known"):
        loaded.build(adapter)


def test_wrong_shape_is_named(files: dict[str, bytes], adapter: ModelAdapter) -> None:
    state = load(files[WEIGHTS])
    state["scoring.q_proj.weight"] = state["scoring.q_proj.weight"][:-1].clone()
    loaded = RpnCheckpoint.from_files(files | {WEIGHTS: save(state)})
    with pytest.raises(CheckpointError, match=r"q_proj\.weight is \(47, 48\).*needs \(48, 48\)"):
        loaded.build(adapter)


OTHER_BRANCH = RpnShape(branch_layer=1, depth=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "other"), ("prompt", "{images} {question}"), ("rpn", OTHER_BRANCH)],
)
def test_other_model_is_refused(
    checkpoint: RpnCheckpoint, adapter: ModelAdapter, field: str, value: object
) -> None:
    other = checkpoint.config.profile.model_copy(update={field: value})
    foreign = replace(checkpoint, config=checkpoint.config.model_copy(update={"profile": other}))
    with pytest.raises(CheckpointError, match=f"with {field} .*checkpoint's profile"):
        foreign.build(adapter)


def test_local_copy_of_the_model_is_accepted(
    checkpoint: RpnCheckpoint, adapter: ModelAdapter
) -> None:
    other = checkpoint.config.profile.model_copy(update={"model_id": "org/name", "revision": "1"})
    moved = replace(checkpoint, config=checkpoint.config.model_copy(update={"profile": other}))
    moved.build(adapter)


def test_newer_format_is_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(CheckpointError, match="format_version 2, this release reads 1"):
        RpnCheckpoint.from_files(with_config(files, format_version=2))


def test_wrong_config_key_is_named(files: dict[str, bytes]) -> None:
    with pytest.raises(CheckpointError, match="key 'treshold' is not known"):
        RpnCheckpoint.from_files(with_config(files, treshold=0.5))


def test_a_config_that_no_file_can_hold_is_refused(files: dict[str, bytes]) -> None:
    """It was read, and writing the RPN again was a traceback."""
    with pytest.raises(CheckpointError, match=r"config\.json is not valid Unicode"):
        RpnCheckpoint.from_files(with_config(files, label_set="\ud800"))


def test_card_of_a_hub_model_names_its_base(checkpoint: RpnCheckpoint) -> None:
    profile = checkpoint.config.profile.model_copy(update={"model_id": "llava-hf/llava-1.5-7b-hf"})
    card = render_model_card(checkpoint.config.model_copy(update={"profile": profile}))
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "llava-hf/llava-1.5-7b-hf"
    assert front["license"] == "other"
    assert "region-proposal" in front["tags"]


def test_card_of_a_local_model_has_no_base(files: dict[str, bytes]) -> None:
    front = yaml.safe_load(files[CARD].decode().split("---")[1])
    assert "base_model" not in front
    assert front["license"] == "unknown"


def test_a_model_called_anything_stays_a_name_in_the_card(checkpoint: RpnCheckpoint) -> None:
    """A folder's name could end the code or the cell of the table, and go on as the card's text."""
    odd = 'x"); import os  # \\\n---\n```\n# Title | `code` <script>'
    changes = dict.fromkeys(("model_id", "name", "revision"), odd)
    profile = checkpoint.config.profile.model_copy(update=changes)
    card = render_model_card(checkpoint.config.model_copy(update={"profile": profile}))
    assert len(card.splitlines()) == len(render_model_card(checkpoint.config).splitlines())
    code = card.split("```python\n")[1].split("\n```\n")[0]
    call = next(node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    assert ast.literal_eval(call.args[0]) == odd
    title = r'x"); import os  # \\ --- \`\`\` # Title \| \`code\` \<script\>'
    assert f"# Region proposal network for {title}" in card.splitlines()
    name = r'````x"); import os  # \ --- ``` # Title \| `code` <script>````'
    assert f"| Frozen model | {name} at {name} |" in card.splitlines()
    assert yaml.safe_load(card.split("---")[1])["license"] == "unknown"


def test_card_shows_the_threshold_in_use(checkpoint: RpnCheckpoint) -> None:
    card = checkpoint.to_files()[CARD].decode()
    chosen = checkpoint.config.validation.chosen
    assert f"| {checkpoint.config.threshold:g} | {chosen.precision:.3f} |" in card
