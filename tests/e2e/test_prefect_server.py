"""Servers that end: one process may talk to several, and a run may lose its own."""

from pathlib import Path

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client

from flows.cli_base import kept_in
from tests.e2e.command_line import sdrpn
from tests.e2e.prefect_run import run_arguments, start_run
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


def test_a_run_that_loses_its_server_says_so_and_goes_on_without_one(tmp_path: Path) -> None:
    """It was 400 lines of tracebacks, and every event was sent ten times before it ended."""
    with prefect_server(tmp_path) as server:
        # Fewer tries than Prefect's five, which take four minutes; a busy server needs one or two.
        server.environment["PREFECT_CLIENT_MAX_RETRIES"] = "2"
        process = start_run(server, tmp_path)
    _, told = process.communicate()
    assert process.returncode == 1, told
    url, store = server.environment["PREFECT_API_URL"], tmp_path / "store"
    assert f"error: the Prefect server at {url} was lost during the run (" in told
    assert kept_in(str(store)) in told

    receipts = set(store.glob("extract-attention/*/receipts/*.json"))
    made = {path: path.stat().st_mtime_ns for path in receipts}
    again = sdrpn(*run_arguments(tmp_path))
    assert again.exit_code == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in receipts} == made
