"""Files on HTTP servers: ranges tied to the entity tag, and every answer put to its meaning."""

import netrc
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import httpx

from data_contracts.errors import one_line
from data_contracts.runtime import DownloadSettings
from sdrpn_core.transport_errors import is_transport_error, may_pass, retry_after
from tasks.fetching.remote import (
    FileChanged,
    Hiccup,
    RangesIgnored,
    RemoteInfo,
    TooSlow,
    Unavailable,
)
from tasks.storage.trickles import Flow, Trickle

_IN_THE_MAKING = 202
_OFFSET = "([0-9]{1,18})"  # larger numbers are no sizes of files
_CONTENT_RANGE = re.compile(rf"bytes {_OFFSET}-{_OFFSET}/(?:{_OFFSET}|\*)")
_MAX_SAID = 80
"""Characters of what a server says, in a message."""
_PACKED = (".gz", ".tgz")
"""Some servers call these encoded, and mean the file itself."""
_REASONS = {
    401: "needs credentials; log in (`hf auth login` for the hub)",
    403: "is forbidden; accept the data set's terms or check the credentials",
    404: "does not exist; check the address",
    410: "is gone; check the address",
}


@cache
def _certificates() -> ssl.SSLContext:
    """Loading them takes longer than a small file."""
    return httpx.create_ssl_context()


def _logins() -> httpx.Auth | None:
    """Passwords by host, as ``curl -n`` knows them; addresses hold none."""
    try:
        return httpx.NetRCAuth(os.environ.get("NETRC") or str(Path.home() / ".netrc"))
    except (OSError, RuntimeError, UnicodeDecodeError, netrc.NetrcParseError):
        return None


class HttpRemote:
    """One URL. Safe to use from several threads."""

    def __init__(
        self,
        url: str,
        settings: DownloadSettings,
        *,
        headers: Mapping[str, str] | None = None,
        sha256: str | None = None,
        licence: str | None = None,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            url: ``http://`` or ``https://``; redirects are followed, without credentials where
                they lead to another host.
            settings: time-outs and number of connections.
            headers: credentials and the like; without, ``~/.netrc`` is looked into.
            sha256: digest that is known beforehand.
            licence: that is known beforehand.
        """
        self._url = url
        self._sha256 = sha256
        self._licence = licence
        self._read_timeout = settings.read_timeout
        timeout = httpx.Timeout(settings.read_timeout, connect=settings.connect_timeout)
        self._client = httpx.Client(
            verify=_certificates(),
            auth=_logins() if headers is None else None,
            follow_redirects=True,
            timeout=timeout,
            limits=httpx.Limits(max_connections=settings.num_connections + 1),
            # A compressed transfer would shift every offset.
            headers={"User-Agent": "sdrpn", **(headers or {}), "Accept-Encoding": "identity"},
        )

    def describe(self) -> RemoteInfo:
        """Ask for the first byte: that works where HEAD does not, and shows if ranges do."""
        try:
            return self._describe_by_range()
        except (FileChanged, RangesIgnored):  # an answer to a range that does not say of what
            return self._describe_whole()

    def _describe_by_range(self) -> RemoteInfo:
        with self._get({"Range": "bytes=0-0"}) as response:
            if response.status_code == 416:  # no first byte: the file is empty
                return self._describe_whole()
            if response.status_code == 206:
                _, _, total = _content_range(response)
                return self._info(total, response, takes_ranges=total is not None)
            return self._without_ranges(response)

    def _describe_whole(self) -> RemoteInfo:
        with self._get({}) as response:
            return self._without_ranges(response)

    def _without_ranges(self, response: httpx.Response) -> RemoteInfo:
        length = response.headers.get("Content-Length")
        return self._info(int(length) if length else None, response, takes_ranges=False)

    def stream(self, start: int, stop: int | None, expected: RemoteInfo) -> Iterator[bytes]:
        """See ``Remote``."""
        headers = {}
        if stop is not None:
            headers["Range"] = f"bytes={start}-{stop - 1}"
            # Weak tags are not allowed here, nor are signs beyond ASCII, which some servers send.
            is_strong = expected.version.startswith('"') and expected.version.isascii()
            if expected.sha256 is None and is_strong:
                headers["If-Range"] = expected.version
        with self._get(headers) as response:
            self._require_same(response, start, stop, expected)
            num_left = None if stop is None else stop - start
            for chunk in _flowing(response.iter_raw(), self._read_timeout):
                if num_left is not None:
                    if len(chunk) > num_left:
                        raise Hiccup("more bytes came than were asked for")
                    num_left -= len(chunk)
                yield chunk
            if num_left:
                raise Hiccup(f"the connection ended {num_left} bytes early")

    def _require_same(
        self, response: httpx.Response, start: int, stop: int | None, expected: RemoteInfo
    ) -> None:
        if expected.sha256 is None and _version(response) != expected.version:
            raise FileChanged
        if stop is None:
            length = response.headers.get("Content-Length")
            if length and expected.num_bytes is not None and int(length) != expected.num_bytes:
                raise FileChanged
            return
        if response.status_code != 206:
            raise RangesIgnored
        first, last, total = _content_range(response)
        if total is not None and expected.num_bytes is not None and total != expected.num_bytes:
            raise FileChanged
        if (first, last) != (start, stop - 1):
            raise RangesIgnored

    def _info(
        self, num_bytes: int | None, response: httpx.Response, *, takes_ranges: bool
    ) -> RemoteInfo:
        return RemoteInfo(
            num_bytes=num_bytes,
            version=_version(response),
            takes_ranges=takes_ranges,
            sha256=self._sha256,
            licence=self._licence,
        )

    @contextmanager
    def _get(self, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """A successful response (or 416 to a range), its body unread."""
        try:
            with self._client.stream("GET", self._url, headers=headers) as response:
                _require_success(response)
                yield response
        except httpx.TransportError as error:
            if is_transport_error(error):
                raise Hiccup(one_line(error)) from error
            raise _unusable(error) from error  # say, a redirect to file://
        except (httpx.InvalidURL, httpx.TooManyRedirects, UnicodeError) as error:
            raise _unusable(error) from error


def _flowing(chunks: Iterator[bytes], seconds: float) -> Iterator[bytes]:
    flow = Flow(seconds)
    for chunk in chunks:
        try:
            flow.came(len(chunk))
        except Trickle as error:
            raise TooSlow(f"the server all but stands still ({error})") from error
        yield chunk
        flow.wait()


def _unusable(error: Exception) -> Unavailable:
    return Unavailable(f"cannot be asked for ({one_line(error)}); check the address")


def _require_success(response: httpx.Response) -> None:
    status = response.status_code
    if status == _IN_THE_MAKING or may_pass(status):
        reason = f"the server answers {status} {response.reason_phrase[:_MAX_SAID]}"
        raise Hiccup(reason, retry_after(response.headers))
    is_range = "Range" in response.request.headers
    if status == 416 and is_range:
        if _is_empty(response):
            return
        raise FileChanged  # shorter than it was
    if status != 200 and not (status == 206 and is_range):
        known = _REASONS.get(status, "cannot be had; check the address")
        raise Unavailable(f"{known} (HTTP {status})")
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity" and not response.url.path.lower().endswith(_PACKED):
        raise Unavailable(
            f"is sent as {encoding[:_MAX_SAID]} though asked for as it is; add a mirror"
        )
    if "html" in response.headers.get("Content-Type", "") and not _names_html(response):
        raise Unavailable("is a web page, not the file; check the address or log in")


def _is_empty(response: httpx.Response) -> bool:
    return str(response.headers.get("Content-Range", "")).endswith("/0")


def _names_html(response: httpx.Response) -> bool:
    return response.url.path.lower().endswith((".html", ".htm"))


def _content_range(response: httpx.Response) -> tuple[int, int, int | None]:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None:
        raise RangesIgnored
    first, last, total = match.groups()
    return int(first), int(last), None if total is None else int(total)


def _version(response: httpx.Response) -> str:
    return str(response.headers.get("ETag") or response.headers.get("Last-Modified") or "")
