"""The public deployments on a real server with a real worker, as the README starts them."""

import json
from collections.abc import Iterator

import pytest

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import PipelineConfig
from data_contracts.enums import Stage
from tasks.artifact_admin import ArtifactSummary, list_artifacts
from tasks.artifact_store import ArtifactStore
from tests.e2e.prefect_server import PrefectServer, prefect_server
from tests.pipelines import write_tiny_pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

POOL = "local-process"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as server:
        server.prefect("work-pool", "create", POOL, "--type", "process")
        server.prefect("--no-prompt", "deploy", "--all")
        with server.background("worker", "start", "--pool", POOL, "--type", "process"):
            yield server


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    return write_tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("store")))


def start(
    server: PrefectServer,
    deployment: str,
    config: PipelineConfig,
    store: ArtifactStore,
    **parameters: object,
) -> tuple[int, str]:
    """Run a deployment to its end; returns (exit status, output)."""
    runtime = {"store": store.root, "device": "cpu", "num_threads": 1}
    given = {"config": config.model_dump(mode="json"), "runtime": runtime, **parameters}
    options = [f"--param={name}={json.dumps(value)}" for name, value in given.items()]
    done = server.prefect("deployment", "run", deployment, "--watch", *options, check=False)
    return done.returncode, done.stdout + done.stderr


def committed(store: ArtifactStore) -> dict[ArtifactRef, ArtifactSummary]:
    return {item.ref: item for item in list_artifacts(store) if item.is_committed}


def test_full_pipeline_then_a_stage_again_then_a_failure(
    server: PrefectServer, pipeline: PipelineConfig, store: ArtifactStore
):
    status, output = start(server, "sdrpn/full-pipeline", pipeline, store)
    log = (server.folder / "worker.log").read_text()
    assert status == 0, f"{output}\n{log}"
    made = committed(store)
    assert {ref.stage for ref in made} == set(Stage)
    assert len(list_artifacts(store)) == len(made)

    status, output = start(
        server, "sdrpn/rerun-stage", pipeline, store, stage="make-labels", force=True
    )
    assert status == 0, output
    again = committed(store)
    assert set(again) == set(made)
    digests = {ref: store.manifest(ref) for ref in again}
    for ref, summary in again.items():
        assert (summary.created_at > made[ref].created_at) == (ref.stage is Stage.MAKE_LABELS), ref
        assert digests[ref].num_rows == made[ref].num_rows

    broken = pipeline.model_copy(
        update={"sources": (pipeline.sources[0].model_copy(update={"records": "nowhere.json"}),)}
    )
    status, output = start(server, "sdrpn/regenerate-labels", broken, store)
    assert status == 1, output
    assert "nowhere.json: no such file" in (server.folder / "worker.log").read_text()


def test_deployments_offer_the_reference_configuration_and_a_schedule(server: PrefectServer):
    found = server.prefect("deployment", "inspect", "sdrpn/regenerate-labels", "--output", "json")
    deployment = json.loads(found.stdout)
    form = deployment["parameter_openapi_schema"]["properties"]
    assert form["config"]["default"]["name"] == "reference"
    assert deployment["parameters"] == {"stage": "merge-labels"}
    assert [schedule["schedule"]["cron"] for schedule in deployment["schedules"]] == ["0 3 * * *"]
