"""Downloads from object stores and folders: only what is missing, and never a mixture."""

import gzip
from itertools import pairwise
from pathlib import Path

import pytest
from gcsfs.core import GCSFileSystem

from data_contracts.sources import RemoteFile
from tasks.artifacts.store import ArtifactStore
from tasks.fetching.addresses import matching, opener
from tasks.fetching.fetcher import fetch
from tasks.fetching.remote import DownloadError
from tasks.storage.errors import StoreUnreachable
from tasks.storage.storage import Storage
from tests.fetched_files import DATA, OTHER, assert_right, digest
from tests.file_server import QUICK
from tests.gcs_server import GcsServer


def test_object_stores_are_fetched_from_too(store: ArtifactStore, tmp_path: Path):
    store.storage.put("lake/a.bin", DATA)
    uri = store.storage.uri("lake/a.bin")
    file = RemoteFile(uri=uri, sha256=digest(DATA))
    assert_right(fetch(file, tmp_path / "here", opener(store.storage, QUICK), QUICK))
    with pytest.raises(DownloadError, match=r"none.bin: does not exist"):
        fetch(
            RemoteFile(uri=store.storage.uri("lake/none.bin")),
            tmp_path,
            opener(store.storage, QUICK),
            QUICK,
        )


class CutOffStorage(Storage):
    """Storage that cannot be reached any more after so many reads."""

    def __init__(self, storage: Storage, max_reads: int) -> None:
        super().__init__(storage.root, storage.storage_options)
        self.max_reads = max_reads
        self.asked: list[tuple[int, int]] = []

    def elsewhere(self, root: str) -> Storage:
        assert self.root == root
        return self

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        if len(self.asked) == self.max_reads:
            raise StoreUnreachable("cut off")
        self.asked.append((start, stop))
        return super().read_range(key, start, stop)


@pytest.mark.parametrize("with_digest", [True, False])
def test_object_stores_are_asked_only_for_what_is_missing(
    object_store: ArtifactStore, tmp_path: Path, with_digest: bool
):
    object_store.storage.put("lake/a.bin", DATA)
    lake = object_store.storage.elsewhere(object_store.storage.uri("lake"))
    one = QUICK.model_copy(update={"num_connections": 1})
    file = RemoteFile(uri=lake.uri("a.bin"), sha256=digest(DATA) if with_digest else None)
    first, second = CutOffStorage(lake, 5), CutOffStorage(lake, 100)
    with pytest.raises(DownloadError, match=r"a.bin: cut off"):
        fetch(file, tmp_path / "here", opener(first, one), one)
    assert_right(fetch(file, tmp_path / "here", opener(second, one), one))
    assert len(first.asked) == 5
    assert len(second.asked) == 11 - 5
    parts = sorted(first.asked + second.asked)
    assert (parts[0][0], parts[-1][1]) == (0, len(DATA))
    assert all(one[1] == other[0] for one, other in pairwise(parts))


def test_an_object_that_is_not_what_was_published_is_refused(
    object_store: ArtifactStore, tmp_path: Path
):
    object_store.storage.put("lake/a.bin", OTHER)
    file = RemoteFile(uri=object_store.storage.uri("lake/a.bin"), sha256=digest(DATA))
    with pytest.raises(DownloadError, match=r"a.bin: sends other bytes"):
        fetch(file, tmp_path, opener(object_store.storage, QUICK), QUICK)
    short = file.model_copy(update={"num_bytes": len(DATA) - 1})
    with pytest.raises(DownloadError, match=r"a.bin: .*699999"):
        fetch(short, tmp_path, opener(object_store.storage, QUICK), QUICK)


def test_an_object_that_its_store_unpacks_on_the_way_is_refused(
    gs_store: ArtifactStore, google_server: GcsServer, tmp_path: Path
):
    """Its size is that of the packed bytes, and no range of it can be read."""
    uri = gs_store.storage.uri("lake/mix.json")
    driver = GCSFileSystem(**google_server.options)
    packed = gzip.compress(DATA)
    driver.pipe_file(uri, packed, fixed_key_metadata={"content_encoding": "gzip"})
    with pytest.raises(DownloadError, match=r"mix.json: is stored with Content-Encoding gzip"):
        fetch(RemoteFile(uri=uri), tmp_path, opener(gs_store.storage, QUICK), QUICK)


def test_an_object_replaced_meanwhile_is_fetched_anew(object_store: ArtifactStore, tmp_path: Path):
    object_store.storage.put("lake/a.bin", DATA)
    lake = object_store.storage.elsewhere(object_store.storage.uri("lake"))
    one = QUICK.model_copy(update={"num_connections": 1})
    file = RemoteFile(uri=lake.uri("a.bin"))
    with pytest.raises(DownloadError, match=r"a.bin: cut off"):
        fetch(file, tmp_path, opener(CutOffStorage(lake, 5), one), one)
    lake.put("a.bin", OTHER)
    assert_right(fetch(file, tmp_path, opener(lake, one), one), OTHER)


def test_patterns_name_files_wherever_they_are(store: ArtifactStore, tmp_path: Path):
    for key in ("train-0.parquet", "train-1.parquet", "deep/train-2.parquet", "other.json"):
        store.storage.put(key, b"1")
    root = store.storage.root.rstrip("/")
    names = [f"{root}/train-0.parquet", f"{root}/train-1.parquet"]
    assert list(matching(store.storage, f"{root}/train-*.parquet")) == names
    assert matching(store.storage, f"{root}/*/*.parquet") == (f"{root}/deep/train-2.parquet",)


def test_patterns_at_the_top_of_a_bucket(object_store: ArtifactStore):
    bucket, _, name = object_store.root.partition("/tests/")
    object_store.storage.elsewhere(bucket).put(f"{name}-0.parquet", b"1")
    found = matching(object_store.storage, f"{bucket}/{name}-*.parquet")
    assert found == (f"{bucket}/{name}-0.parquet",)


def test_patterns_follow_links_to_files(tmp_path: Path):
    (tmp_path / "blob").write_bytes(b"1")
    (tmp_path / "snapshot").mkdir()
    link = tmp_path / "snapshot" / "train-0.parquet"
    link.symlink_to("../blob")
    (tmp_path / "snapshot" / "train-1.parquet").symlink_to("../gone")
    storage = Storage(str(tmp_path / "store"))
    assert matching(storage, f"{tmp_path}/snapshot/*.parquet") == (str(link),)
    assert matching(storage, f"file://{tmp_path}/snapshot/*.parquet") == (str(link),)


def test_patterns_of_the_topmost_folders():
    (top,) = Path("/etc").glob("passwd")  # nothing may be written there
    assert matching(Storage("memory://patterns"), "/etc/passw*d") == (str(top),)
    with pytest.raises(DownloadError, match=r"/\*.no-such: matches none of"):
        matching(Storage("memory://patterns"), "/*.no-such")
