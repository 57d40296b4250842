"""The Prefect server of a run: asked for before it, and named if it is lost on the way."""

import contextlib
from collections.abc import Iterator

from prefect.client.orchestration import get_client
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker, emit_events_to_cloud
from prefect.settings import PREFECT_API_URL

from data_contracts.errors import SdrpnError, one_line
from data_contracts.settings_files import ConfigError


class ServerLost(SdrpnError):
    """The Prefect server ended during a run, and the run with it."""


def require_server() -> None:
    """Check that the Prefect server answers, before a flow needs it.

    Raises:
        ConfigError: naming its address and the remedy.
    """
    problem = _problem()
    if problem is not None:
        raise ConfigError(
            f"no Prefect server answers at {PREFECT_API_URL.value()} ({problem}): start "
            "one with `prefect server start`, or unset PREFECT_API_URL to run without"
        )


@contextlib.contextmanager
def server_loss_explained(kept: str) -> Iterator[None]:
    """Say that the server is gone where the block fails because it is, and what is kept.

    Raises:
        ServerLost: instead of Prefect's error.
    """
    if not emit_events_to_cloud():
        # Prefect asks ten times, seven seconds in all, for every event that it has not sent yet,
        # also after the end: minutes. What is not sent at once goes out when a server is back.
        EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=2)
    try:
        yield
    except SdrpnError:
        raise
    except Exception as error:
        problem = _problem()
        if problem is None:
            raise
        raise ServerLost(
            f"the Prefect server at {PREFECT_API_URL.value()} was lost during the run ({problem}): "
            f"{kept}, once a server answers there or PREFECT_API_URL is unset"
        ) from error


def _problem() -> str | None:
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    return None if problem is None else one_line(problem)
