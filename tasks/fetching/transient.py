"""Which failures may go away by themselves."""

import errno
import socket
import ssl

from sdrpn_core.transport_errors import is_transport_error, may_pass
from tasks.fetching.remote import NoAnswer

_PERMANENT = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
)
_FOR_GOOD = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EXDEV,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
}
"""Disks that are full or cannot be written, names that cannot be: until somebody mends them."""
_OWN_NUMBERS = (ssl.SSLError, socket.gaierror, socket.herror)
"""Their ``errno`` is of another list than the system's."""
_DRIVERS = (
    "aiohttp",
    "aiobotocore",
    "botocore",
    "gcsfs",
    "google",
    "huggingface_hub",
    "requests",
)
_MISTAKES = ("Credential", "Profile", "Validation")


def is_transient(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a hiccup of the network or of a storage service."""
    while error is not None:
        known = _known(error)
        if known is not None:
            return known
        error = error.__cause__
    return False


def _known(error: BaseException) -> bool | None:
    """Whether an error itself says that it may go away; None if its cause is to be asked."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    status = getattr(error, "status", None) if status is None else status  # aiohttp's
    if isinstance(status, int) and status >= 400:
        return may_pass(status)
    if is_transport_error(error):
        return True
    is_driver = type(error).__module__.partition(".")[0] in _DRIVERS
    if is_driver and not any(word in type(error).__name__ for word in _MISTAKES):
        return True
    if isinstance(error, _PERMANENT):
        return False  # a driver's error may be its cause, and is explained by it
    if isinstance(error, OSError):
        return isinstance(error, _OWN_NUMBERS) or error.errno not in _FOR_GOOD
    return True if isinstance(error, NoAnswer) else None
