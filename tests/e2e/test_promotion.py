"""Promotion of labels from the command line: within limits, beyond them, and in spite of them."""

import json
from pathlib import Path

import pytest
import yaml

from data_contracts.configs import PipelineConfig
from data_contracts.label_settings import RegionChanges
from tasks.artifacts.admin import list_artifacts
from tasks.artifacts.store import ArtifactStore
from tasks.promote_labels import promotions
from tests.e2e.command_line import sdrpn
from tests.families.registry import FAMILY_MODELS
from tests.pipelines import write_tiny_pipeline


@pytest.fixture(autouse=True)
def _wide_and_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    return write_tiny_pipeline(tmp_path_factory.mktemp("promotion"))


def written(config: PipelineConfig, folder: Path, threshold: float) -> Path:
    """The configuration with another foreground threshold."""
    assert config.labels is not None
    labels = config.labels.model_copy(update={"foreground_ratio_threshold": threshold})
    path = folder / f"config-{threshold}.yaml"
    changed = config.model_copy(update={"labels": labels})
    path.write_text(yaml.safe_dump(changed.model_dump(mode="json")))
    return path


def test_labels_are_promoted_within_limits_only(config: PipelineConfig, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    same, other = written(config, tmp_path, 0.8), written(config, tmp_path, 0.3)
    options = ("--store", store.root)
    Path(store.root).mkdir()
    assert "nothing promoted yet" in sdrpn("labels", "history", "-c", same, *options).stdout

    first = sdrpn("labels", "promote", "-c", same, *options)
    assert first.exit_code == 0, first.output
    (promoted,) = promotions(store, config.name)
    assert f"promoted: {promoted.label_set}" in first.stdout
    assert promoted.drift.previous is None
    again = sdrpn("labels", "promote", "-c", same, *options)
    assert again.exit_code == 0, again.output
    assert promotions(store, config.name) == [promoted]

    refused = sdrpn("labels", "promote", "-c", other, *options)
    assert refused.exit_code == 1
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert f"{promoted.label_set} stays: " in line
    assert "max_foreground_change is 0.25" in line
    assert "`sdrpn labels promote --force`" in line
    assert "Label drift" in refused.stdout
    assert promotions(store, config.name) == [promoted]

    forced = sdrpn("labels", "promote", "-c", other, *options, "--force", "--json", tmp_path / "p")
    assert forced.exit_code == 0, forced.output
    newest = promotions(store, config.name)[1]
    assert json.loads((tmp_path / "p").read_text())["label_set"] == newest.label_set
    assert any("max_foreground_change" in breach for breach in newest.overruled)
    drift = newest.drift
    assert drift.previous is not None
    assert drift.previous.label_set == promoted.label_set
    assert drift.new.foreground_ratio > drift.previous.foreground_ratio
    assert drift.num_compared == drift.new.num_labelled > 0
    assert 0 < drift.box_overlap < 1
    assert newest.label_set in sdrpn("labels", "history", "-c", same, *options).stdout


def test_wrong_settings_stop_promotion_before_anything_is_made(
    config: PipelineConfig, tmp_path: Path
) -> None:
    """It extracted first. LLaVA-OneVision's newline takes one token of every crop."""
    profile = FAMILY_MODELS["llava_onevision"].build(tmp_path / "model")
    model = config.model.model_copy(update={"profile": profile})
    regions = RegionChanges(crop_tokens=1)
    spoilt = config.model_copy(update={"model": model, "regions": regions})
    store = tmp_path / "store"
    refused = sdrpn("labels", "promote", "-c", written(spoilt, tmp_path, 0.8), "--store", store)
    assert refused.exit_code == 2
    assert "crop_tokens is 1: give at least 2" in refused.stderr
    assert not list_artifacts(ArtifactStore(str(store)))


def test_wide_limits_let_other_labels_pass(config: PipelineConfig, tmp_path: Path) -> None:
    options = ("--store", tmp_path / "store")
    wide = {"max_foreground_change": 100, "min_box_overlap": 0, "min_cell_agreement": 0}
    (tmp_path / "limits.yaml").write_text(yaml.safe_dump(wide))
    for threshold in (0.8, 0.3):
        path = written(config, tmp_path, threshold)
        limits = ("--limits", tmp_path / "limits.yaml")
        promoted = sdrpn("labels", "promote", "-c", path, *options, *limits)
        assert promoted.exit_code == 0, promoted.output
    found = promotions(ArtifactStore(str(tmp_path / "store")), config.name)
    assert [entry.overruled for entry in found] == [(), ()]


@pytest.mark.parametrize("is_gone", [True, False])
def test_promoted_labels_that_are_gone_or_damaged_are_named(
    config: PipelineConfig, tmp_path: Path, is_gone: bool
) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    for threshold in (0.8, 0.7):
        path = written(config, tmp_path, threshold)
        result = sdrpn("labels", "promote", "-c", path, "--store", store.root)
        if threshold == 0.8:
            (first,) = promotions(store, config.name)
            if is_gone:
                store.storage.delete([f"{first.label_set}/manifest.json"])
            else:
                store.storage.put(f"{first.label_set}/manifest.json", b"{")
    assert result.exit_code == 1
    problem = ", the last promoted label set, is not in the store" if is_gone else "/manifest.json"
    assert f"{first.label_set}{problem}" in result.stderr
    forced = sdrpn("labels", "promote", "-c", path, "--store", store.root, "--force")
    assert forced.exit_code == 0, forced.output
