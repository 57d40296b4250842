"""What servers and stores give in tests of fetching, and whether it came."""

import hashlib

import numpy as np

from tasks.fetching.kept_files import FetchedFile

DATA = np.random.default_rng(0).bytes(700_000)  # eleven parts of 64 KiB
OTHER = np.random.default_rng(1).bytes(700_000)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def assert_right(fetched: FetchedFile, data: bytes = DATA) -> None:
    assert fetched.path.read_bytes() == data
    assert (fetched.num_bytes, fetched.sha256) == (len(data), digest(data))
    left = {path.name for path in fetched.path.parent.iterdir()}
    assert left == {fetched.path.name, f"{fetched.path.name}.verified.json"}
