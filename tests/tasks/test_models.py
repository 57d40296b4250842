"""Which model a run uses, and where its workers put it."""

from pathlib import Path

import pytest

from data_contracts.configs import ModelConfig, PipelineConfig
from data_contracts.runtime import RuntimeConfig
from data_contracts.settings_files import ConfigError
from sdrpn_core.calibration.profile_file import profile_yaml
from tasks.loaded_model import release_model
from tasks.models import (
    adapter_for,
    device_of_worker,
    model_identity,
    placement,
    require_usable_settings,
)
from tests.config_samples import MINIMAL
from tests.tiny_models import tiny_llava


def identity_of(directory: Path, tmp_path: Path) -> str:
    """Identity of a model folder, as a run that names its profile has it."""
    profile = tiny_llava(tmp_path / "any").model_copy(update={"model_id": str(directory)})
    file = tmp_path / f"{directory.name}.yaml"
    file.write_text(profile_yaml(profile, "test"))
    return str(model_identity(ModelConfig(profile=str(file)))["model"])


def linked_snapshot(model: Path, snapshot: Path) -> Path:
    """A folder of links into another, as the hub's cache has them."""
    snapshot.mkdir()
    for file in model.iterdir():
        (snapshot / file.name).symlink_to(file)
    return snapshot


def test_models_behind_links_are_told_apart(tmp_path: Path) -> None:
    """Folders of links looked empty, and all empty folders alike: labels of one model were reused
    for another."""
    tiny_llava(tmp_path / "first", seed=1)
    tiny_llava(tmp_path / "second", seed=2)
    first = linked_snapshot(tmp_path / "first", tmp_path / "snapshot-1")
    second = linked_snapshot(tmp_path / "second", tmp_path / "snapshot-2")
    assert identity_of(first, tmp_path) != identity_of(second, tmp_path)
    assert identity_of(first, tmp_path) == identity_of(tmp_path / "first", tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no weights"):
        identity_of(tmp_path / "empty", tmp_path)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_workers_are_spread_over_the_gpus(device: str) -> None:
    devices = [device_of_worker(device, number, 4) for number in range(1, 9)]
    assert sorted(devices) == sorted([f"cuda:{gpu}" for gpu in range(4)] * 2)


def test_a_named_device_or_a_single_gpu_stays() -> None:
    assert device_of_worker("cuda:2", 5, 4) == "cuda:2"
    assert device_of_worker("cpu", 5, 4) == "cpu"
    assert device_of_worker("auto", 3, 0) == "auto"
    assert device_of_worker("cuda", 3, 1) == "cuda"


def test_a_profile_may_be_written_out(tmp_path: Path) -> None:
    profile = tiny_llava(tmp_path / "model")
    (tmp_path / "profile.yaml").write_text(profile_yaml(profile))
    by_path = ModelConfig(profile=str(tmp_path / "profile.yaml"))
    written_out = ModelConfig(profile=profile)
    assert model_identity(written_out) == model_identity(by_path)
    assert ModelConfig.model_validate_json(written_out.model_dump_json()) == written_out
    assert len({written_out, ModelConfig(profile=profile), by_path}) == 2


@pytest.mark.parametrize(
    ("labels", "is_told"),
    [(None, False), ({"border_cells": 1}, False), ({"sink_threshold": 0.01}, True)],
)
def test_a_sink_threshold_without_a_sink_rule_is_told(
    caplog: pytest.LogCaptureFixture, labels: dict[str, float] | None, is_told: bool
) -> None:
    """It changed the labels' address and not one label."""
    plain = MINIMAL | {"model": {"profile": "reference"}, "labels": labels}
    require_usable_settings(PipelineConfig.model_validate(plain))
    told = "labels.sink_threshold (0.01) is without effect: profile 'reference' names no sink rule"
    assert caplog.messages == ([told] if is_told else [])


def test_weights_are_loaded_once_for_a_draft_and_its_calibrated_profile(tmp_path: Path) -> None:
    """Two copies of a large model would not fit on the device that one was chosen for."""
    runtime = RuntimeConfig(device="cpu")
    profile = tiny_llava(tmp_path / "model")
    draft = adapter_for(ModelConfig(profile=profile.model_copy(update={"heads": {}})), runtime)
    found = adapter_for(ModelConfig(profile=profile), runtime)
    assert found.model is draft.model
    assert (draft.profile.heads, found.profile) == ({}, profile)
    assert adapter_for(ModelConfig(profile=profile), runtime) is found
    other = adapter_for(ModelConfig(profile=profile, dtype="bfloat16"), runtime)
    assert other.model is not found.model
    release_model()
    assert adapter_for(ModelConfig(profile=profile), runtime) is not found


def test_where_a_model_runs_tells_setups_apart() -> None:
    """An evaluator that was kept for one runtime answered for another in the same process."""
    base = RuntimeConfig(device="cpu")
    others = [{"device": "cuda:1"}, {"device_map": "auto"}, {"num_threads": 3}]
    placements = {placement(base.model_copy(update=change)) for change in ({}, *others)}
    assert len(placements) == 4
    assert placement(base.model_copy(update={"batch_size": 7})) == placement(base)
