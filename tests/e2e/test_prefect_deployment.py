"""The public deployments on a real server with a real worker, as the README starts them."""

import json
import re
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path

import pytest
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
)

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import PipelineConfig
from data_contracts.enums import Stage
from data_contracts.settings_files import ConfigError
from flows.earlier_run import parameters_of
from tasks.artifacts.admin import ArtifactSummary, list_artifacts
from tasks.artifacts.store import ArtifactStore
from tasks.promote_labels import promotions
from tests.e2e.prefect_server import PrefectServer, prefect_server
from tests.patience import wait_until
from tests.pipelines import write_uncalibrated_pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

POOL = "local-process"
RUN_ID = re.compile(r"UUID: ([0-9a-f-]{36})")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as server:
        # A worker looks every ten seconds, and each run would wait for half of that.
        server.environment["PREFECT_WORKER_QUERY_SECONDS"] = "1"
        server.prefect("work-pool", "create", POOL, "--type", "process")
        server.prefect("--no-prompt", "deploy", "--all")
        with server.in_this_process():
            let_schedules_run(False)  # at three at night, its run would go into this checkout
        with server.background("worker", "start", "--pool", POOL, "--type", "process"):
            yield server


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    return write_uncalibrated_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("store")))


def start(
    server: PrefectServer,
    deployment: str,
    config: PipelineConfig,
    store: ArtifactStore,
) -> tuple[int, str]:
    """Run a deployment on a configuration to its end; returns (exit status, output)."""
    runtime = {"store": store.root, "device": "cpu", "num_threads": 1}
    return run(server, deployment, config=config.model_dump(mode="json"), runtime=runtime)


def run(server: PrefectServer, deployment: str, **given: object) -> tuple[int, str]:
    """Run a deployment with these parameters to its end; returns (exit status, output)."""
    options = [f"--param={name}={json.dumps(value)}" for name, value in given.items()]
    done = server.prefect("deployment", "run", deployment, "--watch", *options, check=False)
    return done.returncode, done.stdout + done.stderr


def let_schedules_run(is_active: bool) -> None:
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments():
            for schedule in deployment.schedules:
                client.update_deployment_schedule(deployment.id, schedule.id, active=is_active)


def shown(name: str) -> Artifact:
    """What a flow shows under a name in Prefect's pages, its newest."""
    artifact = Artifact.get(f"sdrpn-{name}")
    assert artifact is not None
    return artifact


def scheduled_hours(deployment: str) -> set[int]:
    """Hours of the day (UTC) of a deployment's runs to come that the server has planned."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[deployment])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Scheduled"]))
            ),
        )
    times = [run.expected_start_time for run in runs if run.auto_scheduled]
    return {time.astimezone(UTC).hour for time in times if time is not None}


def committed(store: ArtifactStore) -> dict[ArtifactRef, ArtifactSummary]:
    return {item.ref: item for item in list_artifacts(store) if item.is_committed}


@pytest.fixture(scope="module")
def full_run(server: PrefectServer, pipeline: PipelineConfig, store: ArtifactStore) -> str:
    """The id of a run of the whole pipeline that made everything in the store."""
    status, output = start(server, "sdrpn/full-pipeline", pipeline, store)
    assert status == 0, f"{output}\n{(server.folder / 'worker.log').read_text()}"
    (found,) = RUN_ID.findall(output)
    return str(found)


def test_full_pipeline_makes_everything_and_shows_it(
    server: PrefectServer, pipeline: PipelineConfig, store: ArtifactStore, full_run: str
):
    made = committed(store)
    assert {ref.stage for ref in made} == set(Stage)
    assert len(list_artifacts(store)) == len(made)
    with server.in_this_process():
        # Of the tables that a terminal shows, two were to be found there.
        for table, column in (
            ("stages", "seconds"),
            ("results", "accuracy"),
            ("regions-against-true-boxes", "recall"),
        ):
            assert column in str(shown(table).data)
        # As links, their paths led into Prefect's own pages.
        for name in ("report", "calibration"):
            page = shown(name)
            fence, path, end = str(page.data).splitlines()
            assert (fence, end) == ("```", "```")
            assert Path(path).is_file()
            assert page.description == f"{name.capitalize()}: {pipeline.name}"


@pytest.mark.parametrize(
    "stage", [Stage.CALIBRATE, Stage.MAKE_LABELS], ids=lambda stage: stage.value
)
def test_a_stage_of_an_earlier_run_again(
    server: PrefectServer, store: ArtifactStore, full_run: str, stage: Stage
):
    made = committed(store)
    again_please = {"run": full_run, "stage": stage.value, "force": True}
    status, output = run(server, "sdrpn/rerun-stage", **again_please)
    assert status == 0, output
    again = committed(store)
    assert set(again) == set(made)
    digests = {ref: store.manifest(ref) for ref in again}
    for ref, summary in again.items():
        assert (summary.created_at > made[ref].created_at) == (ref.stage is stage), ref
        assert digests[ref].num_rows == made[ref].num_rows


def test_regenerated_labels_are_promoted_within_limits_only(
    server: PrefectServer, pipeline: PipelineConfig, store: ArtifactStore
):
    status, output = start(server, "sdrpn/regenerate-labels", pipeline, store)
    assert status == 0, output
    (promoted,) = promotions(store, pipeline.name)
    assert store.is_committed(ArtifactRef.parse(promoted.label_set))

    assert pipeline.labels is not None
    wider = pipeline.labels.model_copy(update={"foreground_ratio_threshold": 0.3})
    changed = pipeline.model_copy(update={"labels": wider})
    status, output = start(server, "sdrpn/regenerate-labels", changed, store)
    assert status == 1, output
    log = (server.folder / "worker.log").read_text()
    assert f"is not promoted, {promoted.label_set} stays: " in log
    assert "min_box_overlap is 0.8" in log
    assert promotions(store, pipeline.name) == [promoted]
    with server.in_this_process():
        assert "foreground share" in str(shown("label-drift").data)


def test_an_unknown_run_is_named(server: PrefectServer):
    with (
        server.in_this_process(),
        pytest.raises(
            ConfigError, match="run 'no-such-run': this Prefect server knows no such earlier"
        ),
    ):
        parameters_of("no-such-run")


def test_deployments_offer_the_reference_configuration_and_a_schedule(server: PrefectServer):
    with server.in_this_process(), get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("sdrpn/regenerate-labels")
    assert deployment.parameter_openapi_schema is not None
    form = deployment.parameter_openapi_schema["properties"]
    assert form["config"]["default"]["name"] == "reference"
    assert deployment.parameters == {"stage": "merge-labels", "promotion": {}}
    schedules = [schedule.schedule.model_dump() for schedule in deployment.schedules]
    assert [schedule["cron"] for schedule in schedules] == ["0 3 * * *"]


def test_the_server_plans_the_runs_of_the_schedule(server: PrefectServer):
    """It failed at that every minute, in its own log alone, for want of an older SQLAlchemy."""
    with server.in_this_process():
        let_schedules_run(True)
        try:
            wait_until(lambda: scheduled_hours("regenerate-labels") == {3})
        finally:
            let_schedules_run(False)
