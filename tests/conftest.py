"""Shared fixtures: one store per kind of storage, S3 and GCS being real servers on loopback."""

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import pytest

from flows.imports import begin_imports, end_imports
from tasks.artifacts.store import ArtifactStore
from tasks.storage.storage import Storage
from tests.gcs_server import GcsServer, gcs_server
from tests.object_server import ObjectServer, object_server


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all tests, and what they test, as commands import: half a million objects."""
    begin_imports()
    try:
        return (yield)
    finally:
        end_imports()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process is left to run one alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """SeaweedFS with an empty bucket, for the whole session."""
    with object_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def google_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """fake-gcs-server with an empty bucket, for the whole session."""
    with gcs_server(tmp_path_factory.mktemp("gs")) as server:
        yield server


@pytest.fixture
def file_store(tmp_path: Path) -> ArtifactStore:
    """A fresh store in a folder."""
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each object of any store is read whole, by key."""
    found: Counter[str] = Counter()
    read, reader = Storage.read, Storage.reader

    def watch_read(storage: Storage, key: str, max_bytes: int | None = None) -> bytes:
        found[key] += 1
        return read(storage, key, max_bytes)

    def watch_reader(storage: Storage, key: str) -> AbstractContextManager[BinaryIO]:
        found[key] += 1
        return reader(storage, key)

    monkeypatch.setattr(Storage, "read", watch_read)
    monkeypatch.setattr(Storage, "reader", watch_reader)
    return found


@pytest.fixture
def memory_store() -> ArtifactStore:
    """A fresh store in this process's memory."""
    return ArtifactStore(f"memory://{uuid4().hex}")


@pytest.fixture
def s3_store(s3_server: ObjectServer) -> ArtifactStore:
    """A fresh store below a random prefix of the server's bucket."""
    return ArtifactStore(s3_server.root(f"tests/{uuid4().hex}"), s3_server.options)


@pytest.fixture
def gs_store(google_server: GcsServer) -> ArtifactStore:
    """A fresh store below a random prefix of the server's bucket."""
    return ArtifactStore(google_server.root(f"tests/{uuid4().hex}"), google_server.options)


@pytest.fixture(params=["file", "memory", "s3", "gs"])
def store(request: pytest.FixtureRequest) -> ArtifactStore:
    """The same test on a folder, in memory, on S3 and on Google Cloud Storage."""
    return request.getfixturevalue(f"{request.param}_store")


@pytest.fixture(params=["s3", "gs"])
def object_store(request: pytest.FixtureRequest) -> ArtifactStore:
    """The same test on each object store."""
    return request.getfixturevalue(f"{request.param}_store")


@pytest.fixture(params=["file", "s3", "gs"])
def shared_store(request: pytest.FixtureRequest) -> ArtifactStore:
    """Storage that other processes see too."""
    return request.getfixturevalue(f"{request.param}_store")
