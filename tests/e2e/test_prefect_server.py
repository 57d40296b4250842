"""The server that other tests start: one process may talk to several, one after the other."""

from pathlib import Path

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client

from tests.e2e.prefect_server import prefect_server
from tests.patience import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@task
def work() -> None:
    """Nothing; its end is an event."""


@flow
def working() -> None:
    work()


def has_ended() -> bool:
    with get_client(sync_client=True) as client:
        return [run.end_time is not None for run in client.read_task_runs()] == [True]


def test_task_runs_end_on_every_server_that_a_process_talks_to(tmp_path: Path) -> None:
    """Those on the second did not: a test failed wherever another with a server ran before it."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        with prefect_server(tmp_path / name) as server, server.in_this_process():
            working()
            wait_until(has_ended)
