"""Every shipped configuration can be run as it is: its plan lacks nothing, whatever its model."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from typer.testing import CliRunner

from data_contracts.enums import Stage
from data_contracts.runtime import RuntimeConfig
from flows.cli import app
from flows.config_files import load_config
from flows.dry_run import plan_run
from sdrpn_core.models.dimensions import model_dimensions
from tasks.models import profile_of
from tests.architecture.source_tree import CHECKOUT
from tests.file_server import FileServer, file_server

CONFIGS = sorted(path.stem for path in (CHECKOUT / "configs").glob("*.yaml"))
GQA = "https://downloads.cs.stanford.edu"
COMMIT = "a" * 40
HUB_FILES = {
    "liuhaotian/LLaVA-Instruct-150K": "llava_v1_5_mix665k.json",
    "ej2/llava-ocr-vqa": "ocr_vqa.tar",
}
MODELS = {profile_of(load_config(name).model).model_id for name in CONFIGS} - {"reference"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """The hub, and GQA's server."""
    monkeypatch.setenv("COLUMNS", "220")
    with file_server() as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.root)
        template = f"{running.root}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        running.add("/nlp/data/gqa/images.zip", bytes(1000))
        for repo, name in HUB_FILES.items():
            file = {"type": "file", "path": name, "size": 1000, "oid": "b" * 40}
            running.json[f"/api/datasets/{repo}"] = {"id": repo, "sha": COMMIT}
            running.json[f"/api/datasets/{repo}/paths-info/{COMMIT}"] = [file]
            running.add(f"/datasets/{repo}/resolve/{COMMIT}/{name}", bytes(1000))
        for repo in MODELS:
            weights = {"rfilename": "model.safetensors", "size": 1000, "blobId": "b" * 40}
            running.json[f"/api/models/{repo}"] = {"id": repo, "sha": COMMIT, "siblings": [weights]}
        yield running


def local(name: str, server: FileServer, folder: Path) -> Path:
    """The configuration as it is shipped, but for the address of a server that has no setting."""
    text = (CHECKOUT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(text.replace(GQA, server.root), encoding="utf-8")
    return folder / "config.yaml"


@pytest.mark.parametrize("name", CONFIGS)
def test_its_plan_has_no_problem(name: str, server: FileServer, tmp_path: Path) -> None:
    config = local(name, server, tmp_path)
    options = ("run", "--dry-run", "--config", config, "--store", tmp_path / "store")
    planned = CliRunner().invoke(app, [str(option) for option in options])
    assert planned.exit_code == 0, planned.output
    assert "first:" not in planned.stdout
    assert "not known:" not in planned.stdout
    assert "come on top" not in planned.stdout
    is_of_the_hub = load_config(name).model.profile != "reference"
    assert ("model: " in planned.stdout) == is_of_the_hub
    assert ("guessed: the model's width" in planned.stdout) == is_of_the_hub  # no config.json here
    is_calibrated = profile_of(load_config(name).model).is_calibrated
    assert (Stage.CALIBRATE.value in planned.stdout) == (not is_calibrated)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_is_calibrated_first_where_it_must_be(
    name: str, server: FileServer, tmp_path: Path
) -> None:
    config = load_config(str(local(name, server, tmp_path)))
    plan = plan_run(config, RuntimeConfig(store=str(tmp_path / "store")))
    calibrations = [stage for stage in plan.stages if stage.stage is Stage.CALIBRATE]
    if profile_of(config.model).is_calibrated:
        assert calibrations == []
        return
    assert calibrations == [plan.stages[0]]
    assert plan.stages[0].num_units == 600
    hours = plan.stages[0].gpu_hours
    assert hours is not None
    text = model_dimensions(profile_of(config.model)).text
    as_7b = text.num_hidden_layers * text.hidden_size**2 / (32 * 4096**2)
    assert 0.05 < hours < 1.5 * as_7b  # LLaVA-1.5-7B has 32 layers of 4096
    # Brief trainings at the rate of small models would say nothing about a large one.
    training = config.training_settings(profile_of(config.model))
    assert config.calibration.branch_training.learning_rate == training.learning_rate
    assert config.calibration.branch_training.num_epochs == 8
