"""Shards on a Ray cluster: the same bytes as in one process, and what is missing is named."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_contracts.enums import Stage
from data_contracts.runtime import RaySettings, RuntimeConfig
from data_contracts.settings_files import ConfigError
from flows.execution import LocalExecution
from flows.run import run_pipeline
from flows.task_runners import shard_runner
from tasks.artifacts.admin import list_artifacts
from tasks.artifacts.store import ArtifactStore
from tests.architecture.source_tree import CHECKOUT
from tests.e2e.prefect_server import prefect_server
from tests.pipelines import write_tiny_pipeline

STARTED_HERE = RaySettings()


def test_ray_without_prefect_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'ray' needs Prefect: .* set PREFECT_API_URL"):
        LocalExecution(RuntimeConfig(ray=STARTED_HERE))


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    monkeypatch.setitem(sys.modules, "prefect_ray.context", None)
    with (
        pytest.raises(ConfigError, match=r"needs `pip install 'sdrpn\[ray\]'`"),
        shard_runner(RuntimeConfig(ray=STARTED_HERE)),
    ):
        pass


@pytest.mark.slow
def test_shards_made_on_ray_are_those_made_here(tmp_path: Path) -> None:
    pytest.importorskip("prefect_ray")
    config = write_tiny_pipeline(tmp_path)
    here = ArtifactStore(f"{tmp_path}/here")
    runtime = RuntimeConfig(store=here.root, device="cpu", num_threads=1)
    run_pipeline(config, LocalExecution(runtime), Stage.EXTRACT_ATTENTION)

    there = ArtifactStore(f"{tmp_path}/there")
    on_ray = runtime.model_copy(update={"store": there.root, "ray": STARTED_HERE})
    (tmp_path / "runtime.yaml").write_text(yaml.safe_dump(on_ray.model_dump(mode="json")))
    command = ("-m", "flows", "stage", "extract-attention", "-c", f"{tmp_path}/config.yaml")
    with prefect_server(tmp_path) as server:
        run = subprocess.run(
            [sys.executable, *command, "--runtime", f"{tmp_path}/runtime.yaml"],
            cwd=CHECKOUT,
            env=server.environment | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(CHECKOUT)},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Ray cluster with 1 nodes" in run.stderr + run.stdout
    made = list_artifacts(there, Stage.EXTRACT_ATTENTION)
    assert made
    for item in made:
        shards = there.manifest(item.ref).shards
        assert [shard.sha256 for shard in shards] == [
            shard.sha256 for shard in here.manifest(item.ref).shards
        ]
