"""What it means when a source's file cannot be read: it is gone, forbidden, or the store fails."""

from collections.abc import Callable
from typing import TypeVar

from data_contracts.errors import SdrpnError, one_line
from tasks.fetching.addresses import local_file
from tasks.sources.record_stream import SourceError

T = TypeVar("T")


class Gone(SourceError):
    """There is nothing at an address."""


class Forbidden(SourceError):
    """A file on this machine's disk may not be read."""


def read_source(uri: str, read: Callable[[], T]) -> T:
    """What a call reads that may raise anything.

    Args:
        uri: what it reads, for messages.
        read: the call.

    Raises:
        Gone: if there is nothing there.
        Forbidden: if it is on this machine's disk and may not be read.
        SourceError: if it cannot be read for another reason.
    """
    try:
        return read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise Gone(f"{uri}: no such file; check the source's URI") from error
    except SdrpnError:
        raise
    except PermissionError as error:
        if local_file(uri) is None:  # credentials are wrong or have run out: for all images alike
            raise SourceError(f"{uri}: may not be read ({error}); check credentials") from error
        raise Forbidden(f"may not be read; give it read permission (chmod +r {uri})") from error
    except Exception as error:  # each driver has errors of its own
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise SourceError(
            f"{uri}: cannot be read ({reason}); check the URI, the credentials and storage_options"
        ) from error
