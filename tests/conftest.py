"""Shared fixtures: one store per kind of storage, S3 being a real server on loopback."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tasks.artifact_store import ArtifactStore
from tests.object_server import ObjectServer, object_server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """SeaweedFS with an empty bucket, for the whole session."""
    with object_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def file_store(tmp_path: Path) -> ArtifactStore:
    """A fresh store in a folder."""
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def memory_store() -> ArtifactStore:
    """A fresh store in this process's memory."""
    return ArtifactStore(f"memory://{uuid4().hex}")


@pytest.fixture
def s3_store(s3_server: ObjectServer) -> ArtifactStore:
    """A fresh store below a random prefix of the server's bucket."""
    return ArtifactStore(s3_server.root(f"tests/{uuid4().hex}"), s3_server.options)


@pytest.fixture(params=["file", "memory", "s3"])
def store(request: pytest.FixtureRequest) -> ArtifactStore:
    """The same test on a folder, in memory and on S3."""
    return request.getfixturevalue(f"{request.param}_store")


@pytest.fixture(params=["file", "s3"])
def shared_store(request: pytest.FixtureRequest) -> ArtifactStore:
    """Storage that other processes see too."""
    return request.getfixturevalue(f"{request.param}_store")
