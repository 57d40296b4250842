"""Files of known digests: found whatever their address was, however their server tags them."""

from pathlib import Path

import pytest

from data_contracts.sources import RemoteFile
from tasks.fetching.kept_files import kept_file
from tasks.fetching.remote import DownloadError
from tests.fetched_files import DATA, OTHER, assert_right, at, digest, get
from tests.file_server import Answer, FileServer


def by_many_nodes(number: int, wanted: str) -> Answer:
    return Answer(headers={"ETag": f'"node {number}"'})


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_known_bytes_may_come_from_nodes_that_tag_them_differently(
    server: FileServer, tmp_path: Path, takes_ranges: bool
):
    """It was given up as a file that changes again and again, though its digest can be checked."""
    served = server.add(
        "/a.zip", DATA, has_etag=False, takes_ranges=takes_ranges, behave=by_many_nodes
    )
    assert_right(get(tmp_path, at(server, "/a.zip", sha256=digest(DATA))))
    assert len(served.requests) == 1 + (11 if takes_ranges else 1)


def test_digest_or_mirror_is_the_remedy_for_tags_that_differ(server: FileServer, tmp_path: Path):
    """It was said what is wrong, and not what to do."""
    server.add("/a.zip", DATA, has_etag=False, behave=by_many_nodes)
    with pytest.raises(DownloadError, match=r"is fetched; give its sha256, or add a mirror$"):
        get(tmp_path, at(server, "/a.zip"))


def test_known_bytes_of_a_changing_size_ask_for_no_digest(server: FileServer, tmp_path: Path):
    served = server.add("/a.zip", DATA)

    def behave(number: int, wanted: str) -> Answer:
        served.data = DATA[: 600_000 + number]
        return Answer()

    served.behave = behave
    with pytest.raises(DownloadError, match=r"is fetched; try again later, or add a mirror$"):
        get(tmp_path, at(server, "/a.zip", sha256=digest(DATA)))


@pytest.mark.parametrize("address", ["/a.zip?signature=2", "/mirror/other.zip"])
def test_known_bytes_are_found_whatever_their_address_was(
    server: FileServer, tmp_path: Path, address: str
):
    """A renewed signature or another mirror fetched tens of gigabytes again."""
    served = server.add("/a.zip", DATA)
    kept = get(tmp_path, at(server, "/a.zip?signature=1", sha256=digest(DATA)))
    served.requests.clear()
    renewed = at(server, address, sha256=digest(DATA))
    assert kept_file(renewed, tmp_path) == kept
    assert get(tmp_path, renewed) == kept
    assert served.requests == []
    assert kept_file(at(server, address), tmp_path) is None
    assert kept_file(at(server, address, sha256=digest(OTHER)), tmp_path) is None


def begin(server: FileServer, folder: Path, file: RemoteFile, data: bytes) -> None:
    """Fetch five of eleven parts."""

    def broken(number: int, wanted: str) -> Answer:
        return Answer(status=403) if number > 5 else Answer()

    server.add("/a.zip", data, behave=broken)
    with pytest.raises(DownloadError, match="is forbidden"):
        get(folder, file, num_connections=1)


def test_renewed_address_goes_on_from_the_parts_on_disk(server: FileServer, tmp_path: Path):
    """A signature that ran out in the middle cost all that had come."""
    begin(server, tmp_path, at(server, "/a.zip?signature=1", sha256=digest(DATA)), DATA)
    served = server.add("/a.zip", DATA)
    assert_right(get(tmp_path, at(server, "/a.zip?signature=2", sha256=digest(DATA))))
    assert len(served.requests) == 1 + 11 - 5


def test_parts_that_are_to_replace_another_file_are_left_to_it(server: FileServer, tmp_path: Path):
    server.add("/a.zip", OTHER)
    other = get(tmp_path, at(server, "/a.zip"))
    begin(server, tmp_path, at(server, "/a.zip", sha256=digest(DATA)), DATA)
    server.add("/b.zip", DATA)
    get(tmp_path, at(server, "/b.zip", sha256=digest(DATA)))
    assert kept_file(at(server, "/a.zip", sha256=digest(OTHER)), tmp_path) == other


def test_file_that_was_kept_twice_is_used_under_its_own_address(server: FileServer, tmp_path: Path):
    """Rows name the file that they were made from: another of the same bytes is another id."""
    kept = {}
    for name in ("/b.zip", "/a.zip", "/c.zip"):
        server.add(name, DATA)
        kept[name] = get(tmp_path, at(server, name))
    assert len({fetched.path for fetched in kept.values()}) == 3
    for name, fetched in kept.items():
        assert kept_file(at(server, name, sha256=digest(DATA)), tmp_path) == fetched
