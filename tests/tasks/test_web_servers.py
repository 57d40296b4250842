"""What web servers say instead of sending a file: pauses, refusals, redirects, other pages.

And who gets which password.
"""

import re
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from tasks.fetching.http_remote import HttpRemote
from tasks.fetching.remote import DownloadError
from tasks.storage.storage import Storage
from tests.fetched_files import DATA, assert_right, at, digest, get
from tests.file_server import QUICK, Answer, FileServer, file_server


def test_server_that_ignores_ranges(server: FileServer, tmp_path: Path):
    def behave(number: int, wanted: str) -> Answer:
        return Answer(drop_after=100_000) if number == 1 else Answer()

    served = server.add("/a.zip", DATA, takes_ranges=False, behave=behave)
    assert_right(get(tmp_path, at(server, "/a.zip")))
    assert served.requests == ["bytes=0-0", "", "", "bytes=0-0"]


def test_server_that_stops_taking_ranges(server: FileServer, tmp_path: Path):
    served = server.add("/a.zip", DATA)

    def behave(number: int, wanted: str) -> Answer:
        served.takes_ranges = number < 3
        return Answer()

    served.behave = behave
    assert_right(get(tmp_path, at(server, "/a.zip")))


def test_server_that_tells_no_length(server: FileServer, tmp_path: Path):
    server.add("/a.zip", DATA, takes_ranges=False, has_length=False, has_etag=False)
    assert_right(get(tmp_path, at(server, "/a.zip")))


@pytest.mark.parametrize("status", [429, 503])
def test_busy_server_is_waited_for_as_it_asks(server: FileServer, tmp_path: Path, status: int):
    busy_at: list[float] = []

    def behave(number: int, wanted: str) -> Answer:
        if number == 2:
            busy_at.append(time.monotonic())
            return Answer(status=status, headers={"Retry-After": "1"})
        return Answer()

    server.add("/a.zip", DATA, behave=behave)
    assert_right(get(tmp_path, at(server, "/a.zip"), num_connections=1))
    assert time.monotonic() - busy_at[0] >= 1


def test_pause_given_as_a_date(server: FileServer, tmp_path: Path):
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
    served = server.add("/a.zip", DATA)
    served.behave = lambda number, wanted: (
        Answer(status=503, headers={"Retry-After": when}) if number < 1 else Answer()
    )
    assert_right(get(tmp_path, at(server, "/a.zip")))


def test_a_pause_beyond_all_calendars_is_none(server: FileServer, tmp_path: Path):
    """Python's reader of dates overflows on it, which no retry caught."""
    when = "1 Jan 99999999999999999999 00:00:00 GMT"
    served = server.add("/a.zip", DATA)
    served.behave = lambda number, wanted: (
        Answer(status=503, headers={"Retry-After": when}) if number < 1 else Answer()
    )
    assert_right(get(tmp_path, at(server, "/a.zip")))


def test_pause_longer_than_our_patience_is_an_error(server: FileServer, tmp_path: Path):
    refuse = Answer(status=429, headers={"Retry-After": "86400"})
    server.add("/a.zip", DATA, behave=lambda number, wanted: refuse)
    with pytest.raises(DownloadError, match=r"429 .* asks for a pause of 86400 s, more than dow"):
        get(tmp_path, at(server, "/a.zip"))


def test_server_that_stays_busy_is_given_up(
    server: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    server.add("/a.zip", DATA, behave=lambda number, wanted: Answer(status=503))
    with pytest.raises(DownloadError, match=r"answers 503 .*\(3 attempts\)"):
        get(tmp_path, at(server, "/a.zip"))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    told = [line for line in warnings if "; again in " in line]
    assert len(told) == 1, "nothing told a server that is down from a slow one"
    assert re.match(r"http://.*/a\.zip: .*answers 503 ", told[0])


@pytest.mark.parametrize("status", [204, 300, 304])
def test_answer_without_the_file_is_not_taken_for_it(
    server: FileServer, tmp_path: Path, status: int
):
    server.add("/a.json", DATA, behave=lambda number, wanted: Answer(status=status))
    with pytest.raises(DownloadError, match=rf"cannot be had; check the address \(HTTP {status}\)"):
        get(tmp_path, at(server, "/a.json"))


def test_file_that_is_not_ready_yet_is_waited_for(server: FileServer, tmp_path: Path):
    server.add("/a.zip", DATA, behave=lambda n, wanted: Answer(status=202 if n < 2 else None))
    assert_right(get(tmp_path, at(server, "/a.zip")))


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (416, {}),
        (206, {"Content-Range": "items 0-0/700000"}),
        (206, {"Content-Range": f"bytes 0-0/{'9' * 25}"}),
        (206, {"Content-Range": f"bytes 0-0/{'9' * 4800}"}),
    ],
)
def test_odd_answers_to_ranges_mean_that_there_are_none(
    server: FileServer, tmp_path: Path, status: int, headers: dict[str, str]
):
    def behave(number: int, wanted: str) -> Answer:
        return Answer(status=status, headers=headers) if wanted else Answer()

    served = server.add("/a.zip", DATA, behave=behave)
    assert_right(get(tmp_path, at(server, "/a.zip", sha256=digest(DATA))))
    assert served.requests == ["bytes=0-0", "", ""]


def test_part_that_nobody_asked_for_is_not_taken_for_the_file(server: FileServer, tmp_path: Path):
    server.add("/a.zip", DATA, behave=lambda number, wanted: Answer(status=206))
    with pytest.raises(DownloadError, match=r"cannot be had; check the address \(HTTP 206\)"):
        get(tmp_path, at(server, "/a.zip"))


def test_login_page_is_not_taken_for_the_file(server: FileServer, tmp_path: Path):
    html = Answer(headers={"Content-Type": "text/html"})
    server.add("/a.zip", b"<html>", behave=lambda number, wanted: html)
    with pytest.raises(DownloadError, match="is a web page, not the file"):
        get(tmp_path, at(server, "/a.zip"))


def test_compressed_transfer_is_not_taken_for_the_file(server: FileServer, tmp_path: Path):
    def behave(number: int, wanted: str) -> Answer:
        return Answer(headers={"Content-Encoding": "gzip"})

    server.add("/a.json", DATA, behave=behave)
    with pytest.raises(DownloadError, match="is sent as gzip though asked for as it is; add a mir"):
        get(tmp_path, at(server, "/a.json"))
    server.add("/a.tar.gz", DATA, behave=behave)
    assert_right(get(tmp_path, at(server, "/a.tar.gz")))


@pytest.mark.parametrize(
    ("status", "message"), [(401, "needs credentials"), (403, "forbidden"), (410, "gone")]
)
def test_refusals_are_not_tried_again(
    server: FileServer, tmp_path: Path, status: int, message: str
):
    served = server.add("/a.zip", DATA, behave=lambda number, wanted: Answer(status=status))
    with pytest.raises(DownloadError, match=rf"a.zip: .*{message}.*HTTP {status}"):
        get(tmp_path, at(server, "/a.zip"))
    assert len(served.requests) == 1


@pytest.fixture
def password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """``Authorization`` by the login that a netrc file has for this machine."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    return "Basic dXNlcjpzZWNyZXQ="


def test_passwords_are_those_of_netrc_and_stay_with_their_host(
    server: FileServer, tmp_path: Path, password: str
):
    with file_server() as other:
        there = Answer(status=302, headers={"Location": other.url("/a.zip")})
        here = server.add("/moved.zip", b"", login=password, behave=lambda number, wanted: there)
        elsewhere = other.add("/a.zip", DATA)
        assert_right(get(tmp_path / "moved", at(server, "/moved.zip")))
        assert set(here.logins) == {password}
        HttpRemote(server.url("/moved.zip"), QUICK, headers={"Authorization": password}).describe()
        assert set(elsewhere.logins) == {None}
    server.add("/folder/a.png", DATA, login=password)
    assert Storage(server.url("/folder")).read("a.png") == DATA


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a.zip"])
def test_a_redirect_to_what_is_no_web_server_is_not_followed(
    server: FileServer, tmp_path: Path, target: str
):
    away = Answer(status=302, headers={"Location": target})
    served = server.add("/a.zip", DATA, behave=lambda number, wanted: away)
    with pytest.raises(DownloadError, match=r"a.zip: cannot be asked for .*; check the address"):
        get(tmp_path, at(server, "/a.zip"))
    assert len(served.requests) == 1


def test_a_netrc_that_cannot_be_read_holds_no_passwords(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every plain download ended in a traceback."""
    netrc = tmp_path / "netrc"
    netrc.write_bytes("machine a login caf\u00e9 password x\n".encode("latin-1"))
    monkeypatch.setenv("NETRC", str(netrc))
    server.add("/netrc.zip", DATA)
    assert_right(get(tmp_path / "here", at(server, "/netrc.zip")))
