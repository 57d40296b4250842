"""Settings that Prefect records mean the same in the folder that a deployment runs in."""

from pathlib import Path

import pytest

from data_contracts.configs import PipelineConfig
from data_contracts.runtime import DownloadSettings, RuntimeConfig
from sdrpn_core.models.profiles import load_profile
from tasks.anywhere import config_anywhere, runtime_anywhere
from tasks.models import profile_of


def config(folder: str = "", above: str = "../") -> PipelineConfig:
    """One with paths that start from a folder and from the one above it."""
    images = [
        {"type": "archive", "folder": "gqa", "file": f"{folder}gqa.zip"},
        {"type": "archive", "folder": "vg", "file": {"uri": "s3://bucket/vg.tar"}},
        {"type": "folder", "uri": f"{above}images"},
    ]
    mirrors = [f"{folder}copies/mix.json", "https://other/mix.json"]
    mix = {
        "name": "mix",
        "records": {"uri": f"{folder}mix.json", "mirrors": mirrors},
        "images": images,
        "boxes": f"{folder}boxes.jsonl",
    }
    held_out = {"name": "held", "records": f"{folder}h.json", "images": f"{folder}h"}
    rows = {
        "type": "parquet",
        "name": "rows",
        "files": [f"{folder}a-*.parquet", "hf://datasets/a/b"],
    }
    chosen = {"task": "pope", "files": f"{folder}POPE"}
    return PipelineConfig.model_validate(
        {
            "name": "x",
            "sources": [mix, rows, {"type": "scenes", "name": "files", "num_images": 3}],
            "model": {"profile": f"{folder}mine.yaml"},
            "labels": {"foreground_ratio_threshold": 0.3},
            "evaluation": {"source": held_out, "benchmarks": [{"type": "benchmark", **chosen}]},
        }
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_every_path_of_a_configuration_is_absolute_and_nothing_else_changes(folder: Path) -> None:
    """A stage of a run with relative paths was made again where they led nowhere."""
    told = config_anywhere(config())
    assert told == config(f"{folder}/work/", f"{folder}/")
    assert config_anywhere(told) == told


def test_a_packaged_profile_stays_a_name(folder: Path) -> None:
    plain = PipelineConfig(name="x", sources=config().sources)
    assert config_anywhere(plain).model.profile == "reference"


@pytest.mark.parametrize("written_out", [False, True])
def test_a_model_in_a_folder_is_found_from_every_other(folder: Path, written_out: bool) -> None:
    """A stage made again elsewhere asked the hub for a model of the folder's name."""
    profile = load_profile("reference").model_copy(update={"model_id": "mine"})
    Path("mine.yaml").write_text(profile.model_dump_json())
    model = {"profile": profile if written_out else "mine.yaml"}
    given = PipelineConfig.model_validate({**config().model_dump(), "model": model})
    as_given = profile if written_out else f"{folder}/work/mine.yaml"
    assert config_anywhere(given).model.profile == as_given  # a model of the hub
    Path("mine").mkdir()
    found = profile.model_copy(update={"model_id": f"{folder}/work/mine"})
    told = config_anywhere(given)
    assert told.model.profile == found
    assert config_anywhere(told) == told
    # Ids are made of it: a run under Prefect and one without trained an RPN each.
    assert profile_of(given.model) == profile_of(told.model) == found


def test_the_built_in_model_is_no_folder_of_its_name(folder: Path) -> None:
    """Its profile, beside a folder `reference` of notes, named that folder as the model."""
    Path("mine.yaml").write_text(load_profile("reference").model_dump_json())
    Path("reference").mkdir()
    assert config_anywhere(config()).model.profile == f"{folder}/work/mine.yaml"


def test_store_and_downloads_are_absolute(folder: Path) -> None:
    given = RuntimeConfig(store="s", downloads=DownloadSettings(folder="d"))
    told = runtime_anywhere(given)
    assert (told.store, told.downloads.folder) == (f"{folder}/work/s", f"{folder}/work/d")
    far = RuntimeConfig(store="s3://bucket/s")
    assert runtime_anywhere(far) == far
