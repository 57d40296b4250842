"""Which failures are worth another try: errors as the real drivers raise them."""

import errno
import os
import socket
import ssl
from pathlib import Path

import httpcore
import httpx
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from gcsfs.retry import HttpError
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from data_contracts.errors import SdrpnError
from sdrpn_core.transport_errors import may_pass
from tasks.fetching.remote import DownloadError, NoAnswer
from tasks.fetching.transient import is_transient
from tasks.sources.archives import NotRewritten
from tasks.storage.errors import as_os_error


def answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.example/file"))


def of_bucket(status: int) -> OSError | None:
    """What a store makes of a refusal of Google's."""
    return as_os_error(HttpError({"code": status, "message": "refused"}))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def full_disk() -> OSError:
    """What the system itself says of a disk with no room left."""
    try:
        Path("/dev/full").write_bytes(b"more")
    except OSError as error:
        return error
    raise AssertionError("/dev/full takes bytes")


def of_system(number: int) -> OSError:
    return OSError(number, os.strerror(number))


MISSING_KEY = ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")


@pytest.mark.parametrize(
    "error",
    [
        NoAnswer("https://x: the server answers 503"),
        TimeoutError("timed out"),
        httpx.ConnectError("no route"),
        httpx.ReadTimeout("timed out"),
        httpcore.ConnectTimeout("timed out"),
        RuntimeError("Data processing error: CAS service error : Reqwest Error: timed out"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        ssl.SSLError(1, "[SSL] record layer failure"),
        of_system(errno.EIO),
        EndpointConnectionError(endpoint_url="http://127.0.0.1:9"),
        HfHubHTTPError("busy", response=answer(503)),
        HfHubHTTPError("slower", response=answer(429)),
        LocalEntryNotFoundError("no connection, and not in the cache"),
        caused(SdrpnError("the store cannot be reached"), httpx.ConnectError("no route")),
    ],
    ids=repr,
)
def test_what_may_go_away(error: Exception):
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        DownloadError("https://x: does not exist"),
        FileNotFoundError("gone"),
        NoCredentialsError(),
        RepositoryNotFoundError("no such repository", response=answer(404)),
        HfHubHTTPError("gated", response=answer(403)),
        caused(FileNotFoundError("gone"), MISSING_KEY),
        caused(SdrpnError("access is denied"), caused(PermissionError("denied"), MISSING_KEY)),
        ValueError("a mistake of ours"),
        httpx.UnsupportedProtocol("the address has no http://"),
        HFValidationError("no name of a repository"),
        full_disk(),
        caused(DownloadError("cannot be written"), full_disk()),
        caused(NotRewritten("cannot be unpacked"), full_disk()),
        of_system(errno.EDQUOT),
        of_system(errno.EFBIG),
        of_system(errno.EROFS),
        of_system(errno.ELOOP),
        of_system(errno.ENAMETOOLONG),
    ],
    ids=repr,
)
def test_what_stays(error: Exception):
    assert not is_transient(error)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [((408, 421, 425, 429, 500, 502, 503, 504, 507), True), ((400, 403, 404, 410, 501), False)],
)
def test_every_service_is_asked_again_after_the_same_refusals(
    statuses: tuple[int, ...], expected: bool
):
    """Four lists said which, and none of them the same."""
    for status in statuses:
        assert may_pass(status) is expected
        assert is_transient(HfHubHTTPError("refused", response=answer(status))) is expected
        assert isinstance(of_bucket(status), ConnectionError) is expected
