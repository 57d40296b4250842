"""What a store says is wrong, and what its drivers raise, in plain terms."""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any, Self

from data_contracts.errors import SdrpnError, one_line
from data_contracts.settings_files import ConfigError
from sdrpn_core.transport_errors import is_transport_error, may_pass
from tasks.storage.local_disk import may_read

_ALIASES = {"gcs": "gs", "s3a": "s3"}
_CREDENTIALS = {
    "s3": "in the environment, AWS_ACCESS_KEY_ID and the like, or in storage_options",
    "gs": "that GOOGLE_APPLICATION_CREDENTIALS names, or `gcloud auth application-default login`",
    "hf": "(`hf auth login`, or HF_TOKEN) and that the repository's terms are accepted",
}
_ENDPOINTS = {
    "gs": "storage_options.endpoint_url or STORAGE_EMULATOR_HOST",
    "hf": "HF_ENDPOINT, and that HF_HUB_OFFLINE is not set",
    "http": "the address; what is finished is kept",
    "https": "the address; what is finished is kept",
}
_SETTINGS = {"hf": "HF_ENDPOINT and HF_TOKEN"}
_DENIED = (401, 403)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a local disk that only its user can end."""
UNWRITABLE = (*DISK_FULL, errno.EROFS, errno.EFBIG)
"""The same, and those of a disk that would not take a file of any size, or of this one."""
_SILENT = ("ReadTimeoutError", "ConnectTimeoutError")
_BROKEN_OFF = ("ServerDisconnectedError", "ClientPayloadError")


class StoreError(SdrpnError):
    """The store cannot be used as asked; the message names the URI and the remedy."""


class TooLarge(StoreError):
    """A file is larger than whatever it is to be can be."""

    @classmethod
    def than(cls, max_bytes: int) -> Self:
        """The error for a file that has more bytes."""
        return cls(f"has more than {max_bytes >> 20} MiB, which no image has")


class BadAddress(StoreError, ConfigError):
    """An address that names no place of any kind, so that it has to be changed first."""


class StoreUnreachable(StoreError, ConnectionError):
    """The store does not answer, which may pass."""


def scheme_of(uri: str) -> str:
    """The kind of storage that an address names; ``file`` for a path."""
    scheme, separator, _ = uri.partition("://")
    return _ALIASES.get(scheme.lower(), scheme.lower()) if separator else "file"


def as_os_error(error: Exception) -> OSError | None:
    """The builtin error that says the same as a driver's own; None if it is plain already."""
    if _package(error) == "aiohttp" and (isinstance(error, OSError) or _name(error) in _BROKEN_OFF):
        return ConnectionError(str(error))
    if _package(error) == "botocore" and _name(error) in _SILENT:
        return ConnectionError(str(error))
    if is_transport_error(error):
        return ConnectionError(str(error) or _name(error))
    if _package(error) == "huggingface_hub":
        response = getattr(error, "response", None)
        return None if response is None else _of_status(response.status_code, str(error))
    if _package(error) == "gcsfs" and _name(error) == "HttpError":
        return _of_status(_status(error), str(error))
    if type(error) is OSError and str(error).startswith("Forbidden: "):  # gcsfs, as text only
        return PermissionError(str(error))
    return None


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """A driver's own errors as builtin ones, so that everyone tells hiccups from facts alike."""
    try:
        yield
    except Exception as error:
        plain = as_os_error(error)
        if plain is None:
            raise
        raise plain from error


def is_past_end(error: Exception) -> bool:
    """Whether a driver says that a range begins where an object has ended."""
    if isinstance(error, OSError) and error.errno == errno.EINVAL:  # s3fs
        return "range is not satisfiable" in str(error)
    return _package(error) == "gcsfs" and _name(error) == "HttpError" and _status(error) == 416


def _package(error: Exception) -> str:
    return type(error).__module__.partition(".")[0]


def _name(error: Exception) -> str:
    return type(error).__name__


def _status(error: Any) -> int:
    return int(error.code or 0)


def _of_status(status: int, detail: str) -> OSError | None:
    if status in _DENIED:
        return PermissionError(detail)
    return ConnectionError(detail) if may_pass(status) else None


def explain(error: Exception, root: str) -> str:
    """What went wrong and what to do about it, in one line."""
    detail = one_line(error)
    name = _name(error)
    scheme = scheme_of(root)
    if scheme == "file" and isinstance(error, NotADirectoryError):
        return "is not a folder (it, or a part of it, is a file); choose another path"
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"the disk is full ({detail}); make room and run again, what is finished is kept"
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return (
            f"the disk is read-only ({detail}); mount it for writing and run again, what is "
            "finished is kept; or choose a folder on another"
        )
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return (
            f"a file is larger than is allowed there ({detail}); raise the limit (ulimit -f), or "
            "take a disk whose file system holds large files, and run again, what is finished is "
            "kept"
        )
    if scheme == "file" and isinstance(error, PermissionError) and _is_closed(error.filename):
        return f"{error.filename} may not be read; give it read permission (chmod +r)"
    if scheme == "file":
        return f"cannot be used ({detail}); choose a folder that you may read and write"
    if isinstance(error, FileNotFoundError):
        return f"there is no such bucket ({detail}); create it, or mend the URI"
    if isinstance(error, PermissionError) or "Credential" in name:
        where = _CREDENTIALS.get(scheme, "in the environment")
        return f"access is denied ({detail}); check the credentials {where}"
    if "Connect" in name or "Endpoint" in name or isinstance(error, ConnectionError | TimeoutError):
        endpoint = _ENDPOINTS.get(scheme, "storage_options.endpoint_url")
        return f"cannot be reached ({detail}); check the network and {endpoint}"
    settings = _SETTINGS.get(scheme, "the credentials and storage_options")
    return f"cannot be used ({detail}); check the URI, {settings}"


def _is_closed(path: str | None) -> bool:
    """Whether what an error is about is one file that may not be read, in a folder that may."""
    return path is not None and os.path.isfile(path) and not may_read(path)
