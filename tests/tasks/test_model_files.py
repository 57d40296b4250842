"""Weights in a plan: what the hub says of them, what its cache has, and a hub that says nothing."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from data_contracts.configs import ModelConfig
from tasks.artifacts.stage import NotMade
from tasks.models import pinned
from tasks.planning.model_files import PlannedModel, pinned_as_planned, planned_model
from tests.file_server import QUICK, FileServer, file_server

COMMIT = "a" * 40
REPO = "llava-hf/llava-1.5-7b-hf"
NAMES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SIZE = 1000
MODEL = ModelConfig(profile="llava-1.5-7b", revision=COMMIT)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    """A hub with the model in two pieces, and once more in another format."""
    with file_server() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.root)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        others = ("config.json", "model.safetensors.index.json", "pytorch_model.bin")
        siblings = [
            {
                "rfilename": name,
                "size": SIZE,
                "blobId": "b" * 40,
                "lfs": {"sha256": "c" * 64, "size": SIZE, "pointerSize": 130},
            }
            for name in (*NAMES, *others)
        ]
        found = {"id": REPO, "sha": COMMIT, "tags": ["license:llama2"], "siblings": siblings}
        server.json[f"/api/models/{REPO}/revision/{COMMIT}"] = found
        yield server


def cache(folder: Path, *names: str) -> None:
    """Put files where the hub's client looks for them."""
    snapshot = folder / "hub" / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", *names):
        (snapshot / name).write_bytes(bytes(SIZE))


def planned(folder: Path) -> PlannedModel:
    plan = planned_model(MODEL, QUICK, folder / "store")
    assert plan is not None
    assert plan.shares_disk
    assert plan.folder == folder / "hub"
    return plan


def test_a_plan_pins_the_model_without_fetching_anything(
    hub: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.json[f"/api/models/{REPO}"] = hub.json[f"/api/models/{REPO}/revision/{COMMIT}"]
    unpinned = MODEL.model_copy(update={"revision": None})
    found = planned_model(unpinned, QUICK, tmp_path / "store")
    assert pinned_as_planned(unpinned, found).revision == COMMIT
    assert not (tmp_path / "hub").exists()
    # Nobody listens on the discard port.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    silent = planned_model(unpinned, QUICK, tmp_path / "store")
    with pytest.raises(NotMade, match="its commit is not known"):
        pinned_as_planned(unpinned, silent)
    assert pinned_as_planned(MODEL, planned_model(MODEL, QUICK, tmp_path)).revision == COMMIT
    cache(tmp_path, NAMES[0])
    refs = tmp_path / "hub" / f"models--{REPO.replace('/', '--')}" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    cached = planned_model(unpinned, QUICK, tmp_path / "store")
    assert pinned_as_planned(unpinned, cached).revision == COMMIT, "as a run would without the hub"


def test_a_model_of_this_disk_stays_as_it_is(tmp_path: Path):
    model = ModelConfig(profile="reference")
    assert planned_model(model, QUICK, tmp_path) is None
    assert pinned_as_planned(model, None) == pinned(model)


def test_the_weights_that_are_loaded_are_planned_and_no_others(hub: FileServer, tmp_path: Path):
    plan = planned(tmp_path)
    assert [file.uri for file in plan.files] == [f"hf://{REPO}@{COMMIT}/{name}" for name in NAMES]
    assert {file.sha256 for file in plan.files} == {"c" * 64}
    assert {file.licence for file in plan.files} == {"llama2"}
    assert plan.missing_bytes == 2 * SIZE


def test_what_is_in_the_cache_does_not_come_again(hub: FileServer, tmp_path: Path):
    cache(tmp_path, NAMES[0])
    plan = planned(tmp_path)
    assert [file.is_here for file in plan.files] == [True, False]
    assert plan.missing_bytes == SIZE
    cache(tmp_path, NAMES[1])
    assert planned(tmp_path).missing_bytes == 0


def test_a_hub_that_is_not_there_is_missed_only_for_what_is_not_in_the_cache(
    hub: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Nobody listens on the discard port.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    cache(tmp_path, NAMES[0])
    half = planned(tmp_path)
    assert (half.missing_bytes, half.is_refused) == (None, False)
    assert "does not answer" in str(half.problem)
    cache(tmp_path, NAMES[1])
    assert planned(tmp_path).missing_bytes == 0


def test_a_model_that_the_hub_does_not_have_is_refused(hub: FileServer, tmp_path: Path):
    hub.json.clear()
    plan = planned(tmp_path)
    assert plan.is_refused
    assert "no such repository" in str(plan.problem)


def test_a_model_in_a_folder_adds_nothing(tmp_path: Path):
    assert planned_model(ModelConfig(profile="reference"), QUICK, tmp_path) is None
