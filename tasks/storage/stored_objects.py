"""What is known of objects without reading them: size, age and version, whatever the driver."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from tasks.storage import local_disk
from tasks.storage.drivers import FileSystem, is_local

_HTTP_DATE = "Last-Modified"
_NO_DATE = (ValueError, OverflowError, OSError)
"""How numbers are refused that are beyond the calendar."""


@dataclass(frozen=True)
class StoredObject:
    """One object found by listing."""

    key: str
    num_bytes: int
    modified: datetime
    version: str
    """Changes when the object does, as far as the store can tell; empty if it cannot."""


def found_below(
    filesystem: FileSystem, path: str, prefix: str, depth: int | None = None
) -> list[StoredObject]:
    """Every object below a folder, sorted.

    Args:
        filesystem: the driver.
        path: the folder in the driver's notation.
        prefix: begins the objects' keys.
        depth: most levels to look into; None for all.
    """
    start = f"{path}/"
    listed = filesystem.find(start, detail=True, **({} if depth is None else {"maxdepth": depth}))
    found = []
    for name, listed_info in sorted(listed.items()):
        info = listed_info
        if info.get("islink") and is_local(filesystem):
            facts = local_disk.facts(name)  # a listing does not follow links
            info = {"type": "other"} if facts is None else {"type": "file", **facts}
        if info["type"] == "file" and len(name) > len(start):  # S3 may hold folder markers
            found.append(described(f"{prefix}{name[len(start) :]}", info))
    return found


def described(key: str, info: Mapping[str, Any]) -> StoredObject:
    """An object, from what its driver says of it under names of its own."""
    names = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified", "created")
    version = next((str(info[name]) for name in names if info.get(name) is not None), "")
    if not version and info["size"] is not None and _http_date(info) is not None:
        version = str(info[_HTTP_DATE])  # to the second, so that only with a size it says enough
    return StoredObject(key, int(info["size"] or 0), _modified(info), version)


def _modified(info: Mapping[str, Any]) -> datetime:
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if value is not None:
            with suppress(*_NO_DATE):
                return datetime.fromtimestamp(float(value), UTC)
    # An unknown age counts as new, so that nothing is collected too early.
    return _http_date(info) or datetime.now(UTC)


def _http_date(info: Mapping[str, Any]) -> datetime | None:
    """When an HTTP server says that an object was changed; None if it does not, or says no date."""
    try:
        value = parsedate_to_datetime(str(info.get(_HTTP_DATE, "")))
    except _NO_DATE:
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)
