"""What servers and stores give in tests of fetching, and whether it came."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from data_contracts.sources import RemoteFile
from tasks.fetching.addresses import opener
from tasks.fetching.fetcher import fetch
from tasks.fetching.kept_files import FetchedFile
from tasks.storage.storage import Storage
from tests.file_server import QUICK, FileServer

DATA = np.random.default_rng(0).bytes(700_000)  # eleven parts of 64 KiB
OTHER = np.random.default_rng(1).bytes(700_000)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def assert_right(fetched: FetchedFile, data: bytes = DATA) -> None:
    assert fetched.path.read_bytes() == data
    assert (fetched.num_bytes, fetched.sha256) == (len(data), digest(data))
    left = {path.name for path in fetched.path.parent.iterdir()}
    assert left == {fetched.path.name, f"{fetched.path.name}.verified.json"}


def get(folder: Path, file: RemoteFile, **settings: Any) -> FetchedFile:
    quick = QUICK.model_copy(update=settings)
    return fetch(file, folder, opener(Storage(str(folder)), quick), quick)


def at(server: FileServer, path: str, **known: Any) -> RemoteFile:
    return RemoteFile(uri=server.url(path), **known)
