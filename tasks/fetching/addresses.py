"""Which remote speaks for an address, where fetched files are kept, and whether they fit."""

import os
import re
import shutil
from pathlib import Path

from data_contracts.errors import SdrpnError, one_line
from data_contracts.runtime import DownloadSettings, RuntimeConfig
from data_contracts.sources import FileAddress
from tasks.fetching.fetcher import OpenRemote
from tasks.fetching.http_remote import HttpRemote
from tasks.fetching.hub_remote import hub_remote
from tasks.fetching.remote import DownloadError, NoAnswer, Remote, Unavailable
from tasks.fetching.storage_remote import StorageRemote
from tasks.fetching.transient import is_transient
from tasks.storage.addresses import absolute_path, absolute_uri, folder_and_name
from tasks.storage.errors import StoreError
from tasks.storage.storage import Storage

_GIB = 1 << 30
_FETCHED = ("http://", "https://", "hf://")


def must_be_fetched(uri: str) -> bool:
    """Whether an address cannot be read piece by piece at speed, so that it is fetched first."""
    return uri.lower().startswith(_FETCHED)


def local_file(uri: str) -> Path | None:
    """The path of an address on this machine's disk; None for any other."""
    if "://" in uri and not uri.startswith("file://"):
        return None
    return absolute_path(uri.removeprefix("file://"))


def opener(store: Storage, settings: DownloadSettings) -> OpenRemote:
    """Opens any address; the store's options apply to addresses of its own scheme."""

    def open_remote(uri: str) -> Remote:
        scheme = uri.partition("://")[0].lower()
        if scheme in ("http", "https"):
            return HttpRemote(uri, settings)
        if scheme == "hf":
            return hub_remote(uri, settings)
        root, name = folder_and_name(uri)
        try:
            return StorageRemote(store.elsewhere(root), name)
        except StoreError as error:
            raise Unavailable(str(error)) from error

    return open_remote


def matching(store: Storage, address: FileAddress) -> tuple[FileAddress, ...]:
    """The files that an address names, sorted: itself, or what matches where it has a ``*``.

    Raises:
        NoAnswer: if the place does not answer.
        DownloadError: if nothing matches, or the place cannot be listed.
    """
    if not isinstance(address, str) or "*" not in address:
        return (address,)
    whole = absolute_uri(address)
    first = whole.rindex("/", 0, whole.index("*")) + 1
    folder, below = whole[:first], whole[first:]
    storage = store.elsewhere(folder)
    try:
        found = [file.key for file in storage.find_all(depth=below.count("/") + 1)]
    except (OSError, SdrpnError) as error:
        reason = one_line(error)
        if is_transient(error):
            raise NoAnswer(f"{address}: cannot be listed now ({reason})") from error
        raise DownloadError(f"{address}: cannot be listed ({reason}); name each file") from error
    pattern = re.compile(re.escape(below).replace(r"\*", "[^/]*"))
    chosen = tuple(sorted(storage.uri(key) for key in found if pattern.fullmatch(key)))
    if not chosen:
        raise DownloadError(f"{address}: matches none of {len(found)} files; check the pattern")
    return chosen


def downloads_folder(runtime: RuntimeConfig) -> Path:
    """Where fetched files are kept."""
    if runtime.downloads.folder is not None:
        return absolute_path(runtime.downloads.folder)
    local = local_file(runtime.store)
    if local is not None:
        return local / ".downloads"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sdrpn" / "downloads"


def free_bytes(folder: Path) -> int:
    """Free disk space where a folder is, or will be."""
    return shutil.disk_usage(existing(folder)).free


def existing(folder: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def require_space(folder: Path, num_bytes: int, settings: DownloadSettings) -> None:
    """Check that files of this size fit.

    Raises:
        DownloadError: if they would leave less free than the settings say.
    """
    free = free_bytes(folder)
    reserve = int(settings.free_gib * _GIB)
    if num_bytes + reserve > free:
        raise DownloadError(
            f"{folder}: {num_bytes / _GIB:.2f} GiB are to be fetched and {reserve / _GIB:.2f} GiB "
            f"kept free, but only {free / _GIB:.2f} GiB are free; make room, or set "
            "downloads.folder to another disk"
        )
