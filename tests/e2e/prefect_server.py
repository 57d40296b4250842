"""A real Prefect server and worker on loopback, in a home of their own."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

CHECKOUT = Path(__file__).parents[2]
_START_SECONDS = 240
_DATABASE = "prefect.db"
_KEPT = TemporaryDirectory(prefix="prefect-database-")
_EMPTY_DATABASE = Path(_KEPT.name) / _DATABASE
"""As the first server of this process made it: a hundred migrations, half of what a start costs."""


@dataclass(frozen=True)
class PrefectServer:
    """Environment that points Prefect's programs at the server."""

    environment: dict[str, str]
    folder: Path

    def prefect(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a ``prefect`` command in the checkout, as a user would."""
        return subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=CHECKOUT,
            env=self.environment,
            check=check,
            capture_output=True,
            text=True,
            timeout=600,
        )

    @contextmanager
    def in_this_process(self) -> Iterator[None]:
        """Flows and clients of this process talk to the server until the block ends.

        What Prefect still has to send is sent before: its services are kept for the whole process
        and know the address that they began with, so that the events of flows on the next server
        went to this one, which was gone, and task runs never ended.
        """
        with temporary_settings({PREFECT_API_URL: self.environment["PREFECT_API_URL"]}):
            try:
                yield
            finally:
                EventsWorker.drain_all()  # all of its base class: the service that sends logs too

    @contextmanager
    def background(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A ``prefect`` command that runs until the block ends."""
        log = (self.folder / f"{arguments[0]}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=CHECKOUT,
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def prefect_server(folder: Path) -> Iterator[PrefectServer]:
    """Server with a database in which nothing has run, ready to answer."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
    }
    server = PrefectServer(environment, folder)
    database = folder / "home" / _DATABASE
    if _EMPTY_DATABASE.exists():
        database.parent.mkdir()
        shutil.copy(_EMPTY_DATABASE, database)
    address = ("--host", "127.0.0.1", "--port", str(port))
    with server.background("server", "start", *address) as process:
        _wait_until_healthy(f"{url}/health", process, folder / "server.log")
        if not _EMPTY_DATABASE.exists():
            _copy_database(database, _EMPTY_DATABASE)
        yield server


def _copy_database(source: Path, target: Path) -> None:
    """As SQLite copies one that a server has open."""
    with closing(sqlite3.connect(source)) as used, closing(sqlite3.connect(target)) as copy:
        used.backup(copy)


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended:\n{log.read_text()}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"no answer from {url}:\n{log.read_text()}")
