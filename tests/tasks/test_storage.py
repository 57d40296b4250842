"""Addresses and objects of the storage layer, on a folder, in memory and on real servers."""

import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import gcsfs
import numpy as np
import pytest

from sdrpn_core.threads import in_parallel
from tasks.artifacts.stage import run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.fetching.transient import is_transient
from tasks.storage.addresses import absolute_uri
from tasks.storage.errors import BadAddress, StoreError, StoreUnreachable, TooLarge
from tasks.storage.storage import Storage
from tasks.storage.stored_objects import described
from tests import canned_servers
from tests.artifacts import (
    make_source_shard,
    source_recipe,
    stage_run,
)
from tests.canned_servers import NO_SUCH_BUCKET
from tests.gcs_server import GcsServer
from tests.object_server import ObjectServer


@pytest.fixture
def canned_server() -> Iterator[str]:
    """Endpoint of an HTTP server for errors that the stores' servers do not give."""
    with canned_servers.canned_server() as endpoint:
        yield endpoint


class TestAddresses:
    def test_read_uri_takes_relative_and_absolute(
        self, store: ArtifactStore, tmp_path: Path
    ) -> None:
        store.storage.put("images/a.png", b"relative")
        (tmp_path / "b.png").write_bytes(b"absolute")
        assert store.read_uri("images/a.png") == b"relative"
        assert store.read_uri(f"{store.root}/images/a.png") == b"relative"
        assert store.read_uri(str(tmp_path / "b.png")) == b"absolute"
        assert store.read_uri(f"file://{tmp_path}/b.png") == b"absolute"

    def test_read_uri_says_what_is_not_there(self, store: ArtifactStore, tmp_path: Path) -> None:
        for uri in ("images/a.png", f"{store.root}/a.png", f"{tmp_path}/a.png"):
            with pytest.raises(FileNotFoundError):
                store.read_uri(uri)
        with pytest.raises(StoreError, match="not a path below"):
            store.read_uri("../a.png")
        with pytest.raises(StoreError, match=r"nowhere://a: .*s3://"):
            store.read_uri("nowhere://a")

    def test_another_google_server_is_named_by_the_environment(
        self,
        gs_store: ArtifactStore,
        google_server: GcsServer,
        file_store: ArtifactStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """For sources beside a store of another kind, whose options are not theirs."""
        gs_store.storage.put("images/a.png", b"there")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", google_server.endpoint)
        monkeypatch.setenv("NO_GCE_CHECK", "true")  # else it looks for Google's own network
        assert file_store.read_uri(f"{gs_store.root}/images/a.png") == b"there"
        assert file_store.storage.elsewhere(gs_store.root).size("images/a.png") == 5

    def test_read_uri_over_http(self, memory_store: ArtifactStore, canned_server: str) -> None:
        assert memory_store.read_uri(f"{canned_server}/200/a.png") == NO_SUCH_BUCKET
        with pytest.raises(FileNotFoundError):
            memory_store.read_uri(f"{canned_server}/404/a.png")
        with pytest.raises(StoreError, match=r"/403/a.png: cannot be read .*403"):
            memory_store.read_uri(f"{canned_server}/403/a.png")

    def test_a_relative_root_stays_where_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        store = ArtifactStore("artifacts")
        ref = run_stage(stage_run(store), source_recipe(1), make_source_shard)
        monkeypatch.chdir("/")
        assert store.root == str(tmp_path / "artifacts")
        assert store.read_frame(ref).height == 4

    def test_a_store_above_is_the_same_store(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its root kept the way to it, and what was named after the root had two names."""
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        for root in ("../store", "../work/../store", f"file://{tmp_path}/work/../store"):
            assert Storage(root).root == str(tmp_path / "store")

    def test_above_a_link_is_above_what_it_links_to(self, tmp_path: Path) -> None:
        """As for every program that opens such a path; links after it, or alone, stay."""
        (tmp_path / "disk/deep").mkdir(parents=True)
        (tmp_path / "disk/data").symlink_to("deep")
        (tmp_path / "link").symlink_to("disk/deep")
        assert absolute_uri(f"{tmp_path}/link/../data/a") == str(tmp_path / "disk/data/a")
        assert absolute_uri(f"{tmp_path}/link/a") == str(tmp_path / "link/a")
        assert absolute_uri(f"{tmp_path}/a..b/c") == str(tmp_path / "a..b/c")
        assert absolute_uri("s3://bucket/a/../b") == "s3://bucket/a/../b"

    def test_a_root_holds_no_password(self) -> None:
        with pytest.raises(BadAddress, match=r"^s3://\.\.\.@bucket/a: the address holds") as caught:
            Storage("s3://key:secret@bucket/a")
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        "facts",
        [
            {"size": 1, "mtime": 1e15},
            {"size": 1, "Last-Modified": f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"},
        ],
    )
    def test_a_date_beyond_the_calendar_is_none(self, facts: dict[str, object]) -> None:
        """One such file, or one such answer of a server, ended the command with a traceback."""
        before = datetime.now(UTC)
        assert described("a.png", facts).modified >= before

    @pytest.mark.timeout(60)
    def test_what_has_no_end_is_not_read(self, tmp_path: Path) -> None:
        """``sdrpn predict /dev/zero`` took all memory, and a pipe was waited for."""
        os.mkfifo(tmp_path / "pipe")
        storage = Storage(str(tmp_path))
        with pytest.raises(OSError, match="is a device or a pipe, not a file"):
            storage.read_uri(f"{tmp_path}/pipe")
        with pytest.raises(IsADirectoryError):
            storage.read_uri(str(tmp_path))
        (tmp_path / "file").write_bytes(b"12345")
        assert storage.read_uri(f"{tmp_path}/file", 5) == b"12345"
        with pytest.raises(TooLarge):
            storage.read_uri(f"{tmp_path}/file", 4)

    def test_a_writable_root_is_made_and_left_clean(self, store: ArtifactStore) -> None:
        store.check_writable()
        assert store.storage.folders("download") == []
        if os.path.isabs(store.root):
            assert os.listdir(store.root) == []

    @pytest.mark.parametrize(
        ("root", "problem"),
        [
            ("nowhere://a/b", "nowhere"),
            ("s3:/bucket/a", "lacks '://'"),
            ("s3:bucket", "lacks '://'"),
            ("gs://", "names no bucket; write it as gs://bucket/prefix"),
            ("gcs:///", "names no bucket"),
            ("s3://", "names no bucket"),
            ("", "empty"),
            ("file://", "empty"),
            ("{tmp}/file", "is not a folder"),
            ("{tmp}/file/below/it", "is not a folder"),
            ("/proc/sdrpn", "choose a folder that you may read"),
        ],
    )
    def test_an_unusable_root_is_explained_in_one_line(
        self, tmp_path: Path, root: str, problem: str
    ) -> None:
        (tmp_path / "file").write_bytes(b"")
        root = root.format(tmp=tmp_path)
        with pytest.raises(StoreError, match=problem) as caught:
            ArtifactStore(root).check_writable()
        assert root in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_missing_driver_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("s3fs", "s3fs.core", "gcsfs", "gcsfs.core"):
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, "tasks.storage.s3_driver", raising=False)
        for scheme in ("s3", "gs"):
            loaded = sys.modules["fsspec.registry"]._registry
            monkeypatch.delitem(loaded, scheme, raising=False)
        for scheme, extra in (("s3", "s3"), ("gs", "gcs")):
            with pytest.raises(StoreError, match=rf"{scheme}://b/a: .*'sdrpn\[{extra}\]'"):
                ArtifactStore(f"{scheme}://b/a").check_writable()

    @pytest.mark.parametrize(
        ("root", "options", "problem"),
        [
            ("s3://sdrpn-test/a", {"secret": "wrong"}, "credentials"),
            ("s3://sdrpn-test/a", {"key": "wrong"}, "credentials"),
            ("s3://sdrpn-test/a", {"endpoint_url": "http://127.0.0.1:9"}, "cannot be reached"),
            ("s3://404/a", {"endpoint_url": "canned"}, "no such bucket"),
        ],
    )
    def test_an_unusable_bucket_is_explained_in_one_line(
        self,
        s3_server: ObjectServer,
        canned_server: str,
        root: str,
        options: dict[str, str],
        problem: str,
    ) -> None:
        if options.get("endpoint_url") == "canned":  # SeaweedFS makes buckets that are missing
            options = {"endpoint_url": canned_server}
        with pytest.raises(StoreError, match=f"{root}: .*{problem}") as caught:
            ArtifactStore(root, s3_server.options | options).check_writable()
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("root", "options", "problem"),
        [
            ("gs://no-such-bucket/a", {}, "no such bucket"),
            ("gs://b/a", {"endpoint_url": "{canned}/401"}, "denied .*GOOGLE_APPLICATION_CREDEN"),
            ("gs://b/a", {"endpoint_url": "{canned}/403"}, "denied .*GOOGLE_APPLICATION_CREDEN"),
            ("gcs://b/a", {"endpoint_url": "{canned}/403"}, "denied .*GOOGLE_APPLICATION_CREDEN"),
            ("gs://b/a", {"endpoint_url": "{canned}/400"}, "cannot be used .*check the URI"),
            ("gs://b/a", {"endpoint_url": "{canned}/503"}, "cannot be reached .*EMULATOR_HOST"),
            ("gs://b/a", {"endpoint_url": "http://127.0.0.1:9"}, "cannot be reached .*EMULATOR_H"),
            ("gs://b/a", {"token": "{tmp}/token.json"}, "cannot be used .*check .*credentials"),
        ],
    )
    def test_an_unusable_google_bucket_is_explained_in_one_line(
        self,
        google_server: GcsServer,
        canned_server: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        root: str,
        options: dict[str, str],
        problem: str,
    ) -> None:
        monkeypatch.setattr(gcsfs.retry, "random", SimpleNamespace(random=lambda: -60.0))  # no wait
        (tmp_path / "token.json").write_text(json.dumps({"type": "nothing known"}))
        given = {k: v.format(canned=canned_server, tmp=tmp_path) for k, v in options.items()}
        with pytest.raises(StoreError, match=f"{root}: .*{problem}") as caught:
            ArtifactStore(root, google_server.options | given).check_writable()
        assert "\n" not in str(caught.value)
        assert str(caught.value).count(root) == 1
        assert caplog.messages == []

    def test_a_google_bucket_that_does_not_answer_may_come_back(
        self, google_server: GcsServer, canned_server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gcsfs.retry, "random", SimpleNamespace(random=lambda: -60.0))  # no wait
        for endpoint in (f"{canned_server}/429", f"{canned_server}/503", "http://127.0.0.1:9"):
            storage = Storage("gs://b/a", {"token": "anon", "endpoint_url": endpoint})
            for use in (
                lambda s=storage: s.read("k"),
                lambda s=storage: s.find("k"),
                lambda s=storage: s.describe(["k"]),
            ):
                with pytest.raises(StoreUnreachable, match="cannot be reached") as caught:
                    use()
                assert is_transient(caught.value)
            with pytest.raises(ConnectionError):
                storage.read_uri("gs://b/a/k")

    @pytest.mark.parametrize(
        ("status", "problem"), [(400, "cannot be used"), (401, "denied"), (403, "denied")]
    )
    def test_looking_for_many_objects_is_explained_as_reading_one_is(
        self, canned_server: str, status: int, problem: str
    ) -> None:
        """The driver's own error was a traceback."""
        options = {"token": "anon", "endpoint_url": f"{canned_server}/{status}"}
        with pytest.raises(StoreError, match=f"gs://b/a: .*{problem}") as caught:
            Storage("gs://b/a", options).describe(["k"])
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("status", [401, 403])
    def test_wrong_google_credentials_are_wrong_for_good(
        self, canned_server: str, status: int
    ) -> None:
        options = {"token": "anon", "endpoint_url": f"{canned_server}/{status}"}
        with pytest.raises(StoreError, match="denied") as caught:
            Storage("gs://b/a", options).read("k")
        assert not is_transient(caught.value)
        with pytest.raises(PermissionError) as raised:
            Storage("gs://b/a", options).read_uri("gs://b/a/k")
        assert not is_transient(raised.value)


class TestStorage:
    def test_create_keeps_what_is_there(self, store: ArtifactStore) -> None:
        assert store.storage.create("a/b", b"first")
        assert not store.storage.create("a/b", b"second")
        assert store.storage.read("a/b") == b"first"

    def test_create_reports_a_race_lost_after_the_check(
        self, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SeaweedFS answers OSError here and not FileExistsError."""
        store.storage.put("a/b", b"first")
        monkeypatch.setattr(Storage, "size", lambda self, key: None)
        assert not store.storage.create("a/b", b"second")
        assert store.storage.read("a/b") == b"first"

    def test_one_of_many_racing_writers_wins(
        self, shared_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Storage, "size", lambda self, key: None)  # all see that it is free
        storage = shared_store.storage
        won = in_parallel(lambda text: storage.create("a/b", text), [b"%d" % i for i in range(32)])
        assert sum(won) == 1
        assert storage.read("a/b") == b"%d" % won.index(True)

    @pytest.mark.parametrize("num_bytes", [0, 1, (6 << 20) + 17])
    def test_files_of_any_size_arrive_whole(
        self, store: ArtifactStore, tmp_path: Path, num_bytes: int
    ) -> None:
        """Six MiB is more than the drivers send in one go."""
        data = np.random.default_rng(0).bytes(num_bytes)
        (tmp_path / "file").write_bytes(data)
        storage = store.storage
        storage.put_file("a/file", tmp_path / "file")
        storage.put("a/bytes", data)
        for key in ("a/file", "a/bytes"):
            assert storage.size(key) == num_bytes
            assert storage.read(key) == data
            with storage.reader(key) as file:
                file.seek(num_bytes // 2)
                assert file.read() == data[num_bytes // 2 :]

    def test_ranges_end_where_the_object_ends(self, store: ArtifactStore) -> None:
        store.storage.put("a/b", b"0123456789")
        for start, stop in ((0, 3), (8, 10), (8, 99), (5, 5), (10, 20), (50, 60)):
            assert store.storage.read_range("a/b", start, stop) == b"0123456789"[start:stop]
        with pytest.raises(FileNotFoundError):
            store.storage.read_range("a/none", 0, 1)

    def test_an_object_changes_its_version_when_it_is_replaced(
        self, object_store: ArtifactStore
    ) -> None:
        storage = object_store.storage
        before = datetime.now(UTC) - timedelta(minutes=1)
        storage.put("a/b", b"first")
        first = storage.describe_one("a/b")
        storage.put("a/b", b"other")
        other = storage.describe_one("a/b")
        assert first is not None
        assert other is not None
        assert first.num_bytes == other.num_bytes == 5
        assert first.version != other.version
        assert before < other.modified < before + timedelta(minutes=2)
        assert storage.find("a") == [other]
        assert storage.describe(["a/b", "a/none"]) == {"a/b": other}

    def test_create_without_hard_links(
        self, file_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*names: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        assert file_store.storage.create("a/b", b"first")
        assert not file_store.storage.create("a/b", b"second")
        assert [o.key for o in file_store.storage.find("a")] == ["a/b"]

    def test_put_replaces(self, store: ArtifactStore) -> None:
        store.storage.put("a/b", b"first")
        store.storage.put("a/b", b"second")
        assert store.storage.read("a/b") == b"second"

    def test_deleting_what_is_gone_is_fine(self, store: ArtifactStore) -> None:
        store.storage.put("a/b", b"")
        store.storage.delete(["a/b", "a/b", "a/c"])
        assert store.storage.find("a") == []

    def test_folders_that_do_not_exist_are_empty(self, store: ArtifactStore) -> None:
        assert store.storage.folders("nothing") == []
        assert store.storage.find("nothing") == []
        assert store.storage.size("nothing/here") is None


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_name_with_colons_is_that_file(tmp_path: Path, prefix: str):
    """fsspec chains addresses by ``::`` and would read the first part of the name."""
    (tmp_path / "a.jpg").write_bytes(b"another")
    (tmp_path / "a.jpg::b.jpg").write_bytes(b"this")
    (tmp_path / "in::side").mkdir()
    (tmp_path / "in::side/c.jpg").write_bytes(b"that")
    storage = Storage(f"{prefix}{tmp_path}")
    assert storage.read("a.jpg::b.jpg") == b"this"
    assert storage.read_uri(f"{prefix}{tmp_path}/a.jpg::b.jpg") == b"this"
    assert storage.read_uri(f"{prefix}{tmp_path}/a.jpg::b.jpg#bytes=1-3") == b"hi"
    assert Storage(f"{tmp_path}/in::side").read("c.jpg") == b"that"
