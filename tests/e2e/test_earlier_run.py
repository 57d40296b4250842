"""Runs named by a rerun: never the rerun itself, and never in a circle."""

from collections.abc import Iterator

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Scheduled

from data_contracts.runtime import RuntimeConfig
from data_contracts.settings_files import ConfigError
from flows.config_files import load_config
from flows.earlier_run import parameters_of
from tests.e2e.prefect_server import prefect_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as server, server.in_this_process():
        yield


@flow
def first(runtime: RuntimeConfig) -> None:
    """A run with settings of its own."""


@flow
def asking(run: str) -> object:
    """As the flow ``sdrpn`` starts; returns what it found, or why not."""
    try:
        return parameters_of(run)
    except ConfigError as error:
        return str(error)


def test_a_rerun_under_the_name_of_its_run_finds_that_run():
    runtime = RuntimeConfig(store="/elsewhere")
    first.with_options(flow_run_name="mine")(runtime)
    again = asking.with_options(flow_run_name="mine")
    assert again("mine") == (load_config(), runtime)
    assert again("mine") == (load_config(), runtime), "the latest of that name is a rerun"


def test_a_run_that_only_names_itself_is_refused():
    found = asking.with_options(flow_run_name="alone")("alone")
    assert "run 'alone': this Prefect server knows no such earlier flow run" in str(found)
    with get_client(sync_client=True) as client:
        one = client.create_flow_run(asking, name="one", parameters={"run": "two"})
        client.create_flow_run(asking, name="two", parameters={"run": str(one.id)})
    with pytest.raises(ConfigError, match=f"run '{one.id}': leads back to itself"):
        parameters_of("one")


def test_a_run_that_has_not_begun_is_refused():
    """The whole default pipeline was run, as if that one had been: the list of runs begins with
    those that a schedule is still to start."""
    with get_client(sync_client=True) as client:
        tomorrows = client.create_flow_run(first, state=Scheduled(), parameters={})
    with pytest.raises(ConfigError, match=f"run '{tomorrows.id}': is scheduled and has not begun"):
        parameters_of(str(tomorrows.id))
