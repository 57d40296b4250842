"""What a fetch needs of any kind of remote: describe the file, stream a range of it.

The errors say what to do next: wait and try again, start over, use one connection, or give up.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from data_contracts.errors import SdrpnError


class DownloadError(SdrpnError):
    """A file cannot be fetched; the message names its address and the remedy."""


class NoAnswer(DownloadError):
    """No address of a file could be asked, or one broke off; a later attempt may go better."""


class Hiccup(Exception):
    """May go away by itself; ``retry_after`` is the pause in seconds that the server asks for."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class TooSlow(Hiccup):
    """So little comes that waiting for the rest makes no sense, though bytes are gained."""


class Unavailable(Exception):
    """This address will not give the file, however often it is asked."""


class FileChanged(Exception):
    """The file is no longer the one that was described."""


class RangesIgnored(Exception):
    """The server sends the whole file whatever range is asked for."""


@dataclass(frozen=True)
class RemoteInfo:
    """A file as its server describes it."""

    num_bytes: int | None
    """None if the server does not say."""
    version: str
    """Entity tag or the like; changes when the file does. Empty if the server has none."""
    takes_ranges: bool
    sha256: str | None = None
    licence: str | None = None


class Remote(Protocol):
    """One address of one file."""

    def describe(self) -> RemoteInfo:
        """Size and version, without the bytes.

        Raises:
            Hiccup: to be tried again.
            Unavailable: for good.
        """

    def stream(self, start: int, stop: int | None, expected: RemoteInfo) -> Iterator[bytes]:
        """Bytes ``start`` to ``stop`` (half-open); to the end if ``stop`` is None.

        Of a file with a digest any version will do: it is checked when it is here, and servers may
        have other tags for the same bytes on every node.

        Raises:
            Hiccup: to be tried again from the last byte received.
            FileChanged: if it is another file than expected.
            RangesIgnored: if a range was asked for and is not what comes.
            Unavailable: for good.
        """
