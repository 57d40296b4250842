"""Downloads against a real server that fails in every way: a right file, or one clear line."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_contracts.sources import RemoteFile
from tasks.artifacts.store import ArtifactStore
from tasks.fetching.addresses import downloads_folder, opener, require_space
from tasks.fetching.fetcher import describe, fetch
from tasks.fetching.kept_files import kept_file, local_path
from tasks.fetching.partial_file import write_from_start
from tasks.fetching.remote import DownloadError
from tasks.storage.storage import Storage
from tests.architecture.source_tree import CHECKOUT
from tests.artifacts import stage_run
from tests.fetched_files import DATA, OTHER, assert_right, at, digest, get
from tests.file_server import QUICK, Answer, FileServer


@pytest.mark.parametrize("with_digest", [True, False])
def test_parts_side_by_side(server: FileServer, tmp_path: Path, with_digest: bool):
    served = server.add("/a.zip", DATA)
    known = {"sha256": digest(DATA)} if with_digest else {}
    assert_right(get(tmp_path, at(server, "/a.zip", **known)))
    assert len({wanted for wanted in served.requests if wanted != "bytes=0-0"}) == 11


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_progress_is_told_by_the_thread_that_fetches(
    server: FileServer, tmp_path: Path, takes_ranges: bool
):
    """Prefect knows no flow in the threads of the connections."""
    server.add("/a.zip", DATA, takes_ranges=takes_ranges)
    told: list[tuple[int, int, int | None]] = []
    fetch(
        at(server, "/a.zip"),
        tmp_path,
        opener(Storage(str(tmp_path)), QUICK),
        QUICK,
        lambda num_done, num_bytes: told.append((threading.get_ident(), num_done, num_bytes)),
    )
    assert {thread for thread, _, _ in told} == {threading.get_ident()}
    assert told[-1][1:] == (len(DATA), len(DATA))


def test_second_fetch_asks_for_no_byte_of_the_file(server: FileServer, tmp_path: Path):
    served = server.add("/a.zip", DATA)
    with_digest = at(server, "/a.zip", sha256=digest(DATA))
    get(tmp_path, with_digest)
    served.requests.clear()
    assert_right(get(tmp_path, with_digest))
    assert served.requests == []
    assert_right(get(tmp_path, at(server, "/a.zip")))
    assert served.requests == ["bytes=0-0"]


def test_changed_file_is_fetched_again(server: FileServer, tmp_path: Path):
    served = server.add("/a.zip", DATA)
    get(tmp_path, at(server, "/a.zip"))
    served.data = OTHER
    assert_right(get(tmp_path, at(server, "/a.zip")), OTHER)


def test_edited_file_on_disk_is_fetched_again(server: FileServer, tmp_path: Path):
    server.add("/a.zip", DATA)
    fetched = get(tmp_path, at(server, "/a.zip"))
    fetched.path.write_bytes(DATA[:-1])
    assert_right(get(tmp_path, at(server, "/a.zip")))


def test_crash_while_publishing_leaves_no_note_of_other_bytes(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    served = server.add("/a.zip", DATA)
    old = get(tmp_path, at(server, "/a.zip"))
    served.data = OTHER  # of the same length
    rename = os.replace

    def crash(source: Any, target: Any) -> None:
        if target == old.path:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            get(tmp_path, at(server, "/a.zip"))
    assert kept_file(at(server, "/a.zip", sha256=digest(OTHER)), tmp_path) is None
    assert_right(get(tmp_path, at(server, "/a.zip", sha256=digest(OTHER))), OTHER)


def test_dropped_connections_go_on_where_they_broke(server: FileServer, tmp_path: Path):
    def behave(number: int, wanted: str) -> Answer:
        return Answer(drop_after=20_000) if number % 2 else Answer()

    served = server.add("/a.zip", DATA, behave=behave)
    assert_right(get(tmp_path, at(server, "/a.zip")))
    starts = {int(wanted[6:].split("-")[0]) for wanted in served.requests}
    assert any(start % 65536 for start in starts)


def test_silent_server_counts_as_a_lost_connection(server: FileServer, tmp_path: Path):
    server.add("/a.zip", DATA, behave=lambda number, wanted: Answer(stall=number == 3))
    assert_right(get(tmp_path, at(server, "/a.zip")))


def test_a_tag_beyond_ascii_is_a_tag(server: FileServer, tmp_path: Path):
    """It was a traceback, as it cannot be sent back."""
    served = server.add("/a.zip", DATA, has_etag=False)
    served.behave = lambda number, wanted: Answer(headers={"ETag": '"\xe9"'})
    assert_right(get(tmp_path, at(server, "/a.zip")))


def test_a_cookie_beyond_ascii_is_explained(server: FileServer, tmp_path: Path):
    server.add("/a.zip", DATA, behave=lambda n, wanted: Answer(headers={"Set-Cookie": "a=\xe9"}))
    with pytest.raises(DownloadError, match=r"a\.zip: cannot be asked for .*check the address"):
        get(tmp_path, at(server, "/a.zip"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("takes_ranges", [True, False])
def test_a_server_that_drips_is_given_up(server: FileServer, tmp_path: Path, takes_ranges: bool):
    """A byte within each time-out kept a fetch going for years."""
    served = server.add(
        "/a.zip",
        DATA,
        takes_ranges=takes_ranges,
        behave=lambda number, wanted: Answer(drip=wanted != "bytes=0-0"),
    )
    with pytest.raises(DownloadError, match=r"all but stands still \(\d+ bytes came in .*attempts"):
        get(tmp_path, at(server, "/a.zip"), read_timeout=0.2)
    served.behave = lambda number, wanted: Answer(drip=number in (1, 2))
    served.requests.clear()
    assert_right(get(tmp_path, at(server, "/a.zip"), read_timeout=0.2))


@pytest.mark.timeout(60)
def test_ctrl_c_does_not_wait_for_silent_connections(server: FileServer, tmp_path: Path):
    """It waited for each as long as the server may be silent."""

    def behave(number: int, wanted: str) -> Answer:
        if number == 8:  # no connection is left that is not silent
            main = threading.main_thread().ident or 0
            threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT)).start()
        return Answer(stall=number > 4, stall_seconds=600.0)

    served = server.add("/a.zip", DATA, behave=behave)
    with pytest.raises(KeyboardInterrupt):
        get(tmp_path, at(server, "/a.zip"), read_timeout=600.0)
    served.behave = lambda number, wanted: Answer()
    assert_right(get(tmp_path, at(server, "/a.zip")))


def test_server_that_always_drops_is_given_up(server: FileServer, tmp_path: Path):
    def behave(number: int, wanted: str) -> Answer:
        return Answer() if wanted == "bytes=0-0" else Answer(drop_after=0)

    server.add("/a.zip", DATA, behave=behave)
    with pytest.raises(DownloadError, match=r"a.zip: .*\(3 attempts\); try again later, or add"):
        get(tmp_path, at(server, "/a.zip"))


def test_stopped_fetch_goes_on_from_the_parts_on_disk(server: FileServer, tmp_path: Path):
    def broken(number: int, wanted: str) -> Answer:
        return Answer(status=404) if number > 5 else Answer()

    served = server.add("/a.zip", DATA, behave=broken)
    with pytest.raises(DownloadError, match="does not exist"):
        get(tmp_path, at(server, "/a.zip"), num_connections=1)
    first = set(served.requests[:-1])  # the last was refused
    served.requests.clear()
    served.behave = lambda number, wanted: Answer()
    assert_right(get(tmp_path, at(server, "/a.zip")))
    assert set(served.requests) & first == {"bytes=0-0"}
    assert len(served.requests) == 1 + 11 - 5 + 1  # described, six parts left, looked at again


KILLED = """
import sys
from pathlib import Path
from data_contracts.sources import RemoteFile
from tasks.fetching.addresses import opener
from tasks.fetching.fetcher import fetch
from tasks.storage.storage import Storage
from tasks.storage.errors import StoreUnreachable
from tests.file_server import QUICK
settings = QUICK.model_copy(update={"num_connections": 1, "read_timeout": 10})
folder = Path(sys.argv[2])
fetch(RemoteFile(uri=sys.argv[1]), folder, opener(Storage(str(folder)), settings), settings)
"""


def test_killed_fetch_goes_on_from_the_parts_on_disk(server: FileServer, tmp_path: Path):
    has_six = threading.Event()

    def slow(number: int, wanted: str) -> Answer:
        if number == 6:  # described, five parts sent
            has_six.set()
            return Answer(stall=True)
        return Answer()

    served = server.add("/killed.zip", DATA, behave=slow)
    command = [sys.executable, "-c", KILLED, server.url("/killed.zip"), str(tmp_path)]
    with subprocess.Popen(command, cwd=CHECKOUT) as process:
        assert has_six.wait(60)
        process.kill()
    sent = set(served.requests[1:6])
    served.requests.clear()
    served.behave = lambda number, wanted: Answer()
    assert_right(get(tmp_path, at(server, "/killed.zip")))
    assert len(sent & set(served.requests)) == 0
    assert len(served.requests) == 1 + 11 - 5 + 1


@pytest.mark.parametrize("spoilt", ["torn", "{}", '{"origin": 5}'])
def test_spoilt_journal_starts_over(server: FileServer, tmp_path: Path, spoilt: str):
    server.add("/a.zip", DATA)
    path = local_path(at(server, "/a.zip"), tmp_path)
    path.with_name(f"{path.name}.parts.json").write_text(spoilt)
    path.with_name(f"{path.name}.partial").write_bytes(b"junk")
    assert_right(get(tmp_path, at(server, "/a.zip")))


def test_wrong_bytes_are_found_and_the_address_is_named(server: FileServer, tmp_path: Path):
    server.add("/a.zip", OTHER)
    with pytest.raises(DownloadError) as caught:
        get(tmp_path, at(server, "/a.zip", sha256=digest(DATA)))
    message = str(caught.value)
    assert "/a.zip: sends other bytes than were published" in message
    assert digest(OTHER) in message
    assert digest(DATA) in message
    assert list(tmp_path.iterdir()) == []


def test_bytes_spoilt_on_the_way_are_fetched_anew(server: FileServer, tmp_path: Path):
    server.add("/a.zip", DATA, behave=lambda number, wanted: Answer(corrupt=number == 4))
    assert_right(get(tmp_path, at(server, "/a.zip", sha256=digest(DATA))))


def test_empty_file(server: FileServer, tmp_path: Path):
    server.add("/empty", b"")
    assert_right(get(tmp_path, at(server, "/empty")), b"")


@pytest.mark.parametrize("has_etag", [True, False])
@pytest.mark.parametrize("is_weak", [True, False])
def test_file_replaced_in_the_middle_is_never_a_mixture(
    server: FileServer, tmp_path: Path, has_etag: bool, is_weak: bool
):
    other = OTHER if has_etag else OTHER[:-1]  # without a tag only its size betrays the change
    served = server.add("/a.zip", DATA, has_etag=has_etag, is_weak=is_weak)

    def behave(number: int, wanted: str) -> Answer:
        if number == 6:
            served.data = other
        return Answer()

    served.behave = behave
    assert_right(get(tmp_path, at(server, "/a.zip")), other)


def test_file_that_changes_all_the_time_is_an_error(server: FileServer, tmp_path: Path):
    served = server.add("/a.zip", DATA)

    def behave(number: int, wanted: str) -> Answer:
        served.data = np.random.default_rng(number).bytes(700_000)
        return Answer()

    served.behave = behave
    with pytest.raises(DownloadError, match="changes again and again while it is fetched"):
        get(tmp_path, at(server, "/a.zip"))


def test_replaced_file_of_another_size_is_not_fetched(server: FileServer, tmp_path: Path):
    served = server.add("/a.zip", DATA)
    with pytest.raises(DownloadError, match="has 700000 bytes, 5 are expected; it was replaced"):
        get(tmp_path, at(server, "/a.zip", num_bytes=5))
    assert served.requests == ["bytes=0-0"]


def test_disk_that_takes_no_more_is_said_in_one_line(server: FileServer, tmp_path: Path):
    server.add("/a.zip", DATA)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(DownloadError, match=r"a.zip: cannot be written to .*downloads.folder"):
            get(tmp_path, at(server, "/a.zip"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_right(get(tmp_path, at(server, "/a.zip")))


def test_mirrors_take_over_and_keep_the_parts(server: FileServer, tmp_path: Path):
    def behave(number: int, wanted: str) -> Answer:
        return Answer(status=503) if number > 4 else Answer()

    server.add("/first.zip", DATA, behave=behave)
    second = server.add("/second.zip", DATA)
    mirrors = (server.url("/none.zip"), server.url("/second.zip"))
    file = at(server, "/first.zip", sha256=digest(DATA), mirrors=mirrors)
    assert_right(get(tmp_path, file, num_connections=1))
    assert len(second.requests) == 1 + 11 - 4


def test_every_mirror_that_failed_is_named(server: FileServer, tmp_path: Path):
    server.add("/bad.zip", OTHER)
    file = at(server, "/none.zip", sha256=digest(DATA), mirrors=(server.url("/bad.zip"),))
    with pytest.raises(DownloadError, match=r"none.zip: does not exist.*bad.zip: sends other"):
        get(tmp_path, file)


def test_more_bytes_than_were_told_are_not_kept(server: FileServer, tmp_path: Path):
    def behave(number: int, wanted: str) -> Answer:
        served.has_length, served.data = number % 2 == 0, DATA * (1 + number % 2)
        return Answer()

    served = server.add("/a.zip", DATA, takes_ranges=False, has_etag=False, behave=behave)
    with pytest.raises(DownloadError, match=r"a.zip: more bytes came than the 700000 that it has"):
        get(tmp_path, at(server, "/a.zip"), max_attempts=1)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_tells_no_length_leaves_room_on_the_disk(server: FileServer, tmp_path: Path):
    server.add("/a.zip", DATA, has_length=False, takes_ranges=False)
    with pytest.raises(DownloadError, match=r"a.zip: cannot be .*free_gib would not be left"):
        get(tmp_path, at(server, "/a.zip"), free_gib=1e9)
    assert list(tmp_path.iterdir()) == []


def test_nobody_listens(tmp_path: Path):
    with pytest.raises(DownloadError, match=r"127.0.0.1:9/a.zip: .*refused.*\(3 attempts\)"):
        get(tmp_path, RemoteFile(uri="http://127.0.0.1:9/a.zip"))


def test_size_and_digest_are_known_before(server: FileServer, tmp_path: Path):
    served = server.add("/a.zip", DATA)
    info = describe(at(server, "/a.zip"), opener(Storage(str(tmp_path)), QUICK), QUICK)
    assert (info.num_bytes, info.version, info.takes_ranges) == (700_000, served.etag, True)
    assert served.requests == ["bytes=0-0"]


def test_full_disk_is_said_before_anything_is_fetched(tmp_path: Path):
    with pytest.raises(DownloadError, match=r"1048576.00 GiB are to be fetched .*make room, or"):
        require_space(tmp_path / "not" / "there", 1 << 50, QUICK)


def test_files_are_kept_beside_a_local_store_else_in_the_cache(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    folder = downloads_folder(stage_run(store).runtime.model_copy(update={"store": store.root}))
    is_local = "://" not in store.root
    expected = Path(store.root) / ".downloads" if is_local else Path("cache/sdrpn/downloads")
    assert folder == expected


def test_what_stops_a_file_of_unknown_size_is_told_though_nothing_is_left_to_remove(
    tmp_path: Path,
) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x"
        (tmp_path / "a.partial").unlink()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left on device"):
        write_from_start(tmp_path / "a", chunks())
