"""Bytes in and out of any fsspec URI; the only module that knows what a filesystem is.

A key is a path below the root, with forward slashes. Objects appear whole or not at all: one PUT of
finished bytes on object stores, a temporary file and a link or rename on local disks. Writing
through ``with fs.open(url, "wb")`` is not used anywhere, because it publishes a truncated object
when the block raises.
"""

import contextlib
import errno
import importlib
import logging
import os
import re
import secrets
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data_contracts.errors import SdrpnError
from tasks import local_disk
from tasks.byte_ranges import ByteRange, member_bytes, split_address
from tasks.storage_errors import as_os_error, explain, is_past_end, scheme_of

A = TypeVar("A")
T = TypeVar("T")

_NUM_THREADS = 16
_SECONDS_BETWEEN_LOOKS = 0.5
_EXTRAS = {"s3": "s3", "gs": "gcs"}
_PACKAGES = {"hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp", "abfs": "adlfs"}
_GCS_OVER_GRPC = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"
_UNLISTABLE = {"http", "https"}
_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict")


class StoreError(SdrpnError):
    """The store cannot be used as asked; the message names the URI and the remedy."""


class StoreUnreachable(StoreError, ConnectionError):
    """The store does not answer, which may pass."""


@dataclass(frozen=True)
class StoredObject:
    """One object found by listing."""

    key: str
    num_bytes: int
    modified: datetime
    version: str
    """Changes when the object does, as far as the store can tell; empty if it cannot."""


class Storage:
    """Objects below one root URI.

    Costs nothing to build and may be sent to other processes: the driver is opened on first use,
    anew in each process.
    """

    def __init__(self, root: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.root = _absolute(root)
        self.storage_options = dict(storage_options or {})
        self._opened: tuple[int, fsspec.AbstractFileSystem, str] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root, self.storage_options)

    def _open(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """The driver and the root in its notation."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), *_connect(self.root, self.storage_options))
        return self._opened[1:]

    @contextlib.contextmanager
    def _at(self, key: str) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
        """The driver and a key in its notation; what only a user can mend is explained."""
        with self._at_root() as (filesystem, root):
            yield filesystem, f"{root}/{_checked(key)}"

    @contextlib.contextmanager
    def _at_root(self) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
        filesystem, root = self._open()
        try:
            with _plain_errors():
                yield filesystem, root.rstrip("/")
        except StoreError:
            raise
        except (PermissionError, NotADirectoryError) as error:
            raise StoreError(f"{self.root}: {explain(error, self.root)}") from error
        except ConnectionError as error:
            raise StoreUnreachable(f"{self.root}: {explain(error, self.root)}") from error
        except (OSError, SdrpnError):
            raise  # transient, or plain facts such as FileNotFoundError
        except Exception as error:
            raise StoreError(f"{self.root}: {explain(error, self.root)}") from error

    def elsewhere(self, root: str) -> "Storage":
        """Storage at another root; these options apply if it has the same scheme."""
        options = self.storage_options if scheme_of(root) == scheme_of(self.root) else {}
        return Storage(root, options)

    @property
    def is_shared(self) -> bool:
        """Whether other processes see what this one writes."""
        return scheme_of(self.root).rpartition("::")[2] != "memory"

    def uri(self, key: str) -> str:
        """Absolute address of a key."""
        return f"{self.root.rstrip('/')}/{key}"

    def read(self, key: str) -> bytes:
        """Whole object.

        Raises:
            FileNotFoundError: if there is none.
        """
        with self._at(key) as (filesystem, path):
            return bytes(filesystem.cat_file(path))

    def size(self, key: str) -> int | None:
        """Bytes of an object, or None if there is none."""
        info = self._info(key)
        return None if info is None else int(info["size"])

    def _info(self, key: str) -> Mapping[str, Any] | None:
        with self._at(key) as (filesystem, path):
            try:
                return dict(filesystem.info(path))
            except FileNotFoundError:
                return None

    def describe_one(self, key: str) -> StoredObject | None:
        """Size, age and version of an object, or None if there is none.

        Raises:
            StoreError: if the store holds it compressed and unpacks it on the way (Google's does),
                so that neither its size nor a range of it can be known.
        """
        info = self._info(key)
        if info is not None and info.get("contentEncoding"):
            raise StoreError(
                f"{self.uri(key)}: is stored with Content-Encoding {info['contentEncoding']}, so "
                "that it has no size and no ranges; upload it again without"
            )
        return None if info is None else _described(key, info)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` (half-open) of an object; fewer if it ends before."""
        with self._at(key) as (filesystem, path):
            return _read_range(filesystem, path, start, stop)

    @contextlib.contextmanager
    def reader(self, key: str) -> Iterator[BinaryIO]:
        """An object as a seekable file, for formats that are read piece by piece."""
        with self._at(key) as (filesystem, path):
            file = filesystem.open(path, "rb")
        with file:  # apart, so that errors of whoever reads are not taken for the store's
            yield file

    def put_file(self, key: str, path: Path, *, may_link: bool = False) -> None:
        """Write an object whole from a local file of any size.

        Args:
            key: where to.
            path: the file.
            may_link: on a local disk share the file's blocks; only for files nobody will edit.
        """
        with self._at(key) as (filesystem, target):
            if isinstance(filesystem, LocalFileSystem):
                local_disk.publish_copy(Path(target), path, may_link)
            else:
                filesystem.put_file(str(path), target)  # one multi-part upload: whole or not at all

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole, replacing what is there."""
        with self._at(key) as (filesystem, path):
            if isinstance(filesystem, LocalFileSystem):
                local_disk.publish(Path(path), data, replace=True)
            else:
                filesystem.pipe_file(path, data)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object whole unless the key is taken; returns whether it was written.

        Stores that ignore conditional puts may let the last of two racing writers win instead, so
        a caller reads the object back and goes by what it finds.
        """
        if self.size(key) is not None:
            return False
        with self._at(key) as (filesystem, path):
            try:
                if isinstance(filesystem, LocalFileSystem):
                    local_disk.publish(Path(path), data, replace=False)
                else:
                    filesystem.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if any(code in f"{error} {error.__cause__}" for code in _CONFLICTS):
                    return False
                if error.errno != errno.ENOSYS:
                    raise
                filesystem.pipe_file(path, data)  # a store without conditional puts
            return True

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects in this order; those already gone are fine."""
        for key in keys:
            with self._at(key) as (filesystem, path), contextlib.suppress(FileNotFoundError):
                filesystem.rm_file(path)

    def find(self, folder: str) -> list[StoredObject]:
        """Every object below a folder (never one that merely shares its first letters)."""
        with self._at(folder) as (filesystem, path):
            return _found(filesystem, path, f"{folder}/")

    def find_all(self, depth: int) -> list[StoredObject]:
        """Every object at most so many folders below the root; 1 means in the root itself."""
        with self._at_root() as (filesystem, path):
            # Object stores list everything at once faster than folder by folder.
            is_local = isinstance(filesystem, LocalFileSystem)
            found = _found(filesystem, path, "", depth if is_local else None)
        return [stored for stored in found if stored.key.count("/") < depth]

    def describe(self, keys: Collection[str]) -> dict[str, StoredObject]:
        """Those of these objects that exist; on object stores by one listing of the root."""
        filesystem, root = self._open()
        found: Mapping[str, Mapping[str, Any] | None]
        if isinstance(filesystem, LocalFileSystem):
            # A listing would not follow links, and datasets are often linked into place.
            found = {key: local_disk.facts(f"{root}/{_checked(key)}") for key in keys}
        elif scheme_of(self.root) in _UNLISTABLE:
            found = dict(zip(keys, in_parallel(self._info, keys), strict=True))
        else:
            start = f"{root.rstrip('/')}/"
            with _plain_errors():
                listed = filesystem.find(start, detail=True)
            found = {key: listed.get(f"{start}{_checked(key)}") for key in keys}
        return {key: _described(key, info) for key, info in found.items() if info is not None}

    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly below a folder; empty if it does not exist."""
        with self._at(folder) as (filesystem, path):
            try:
                entries = filesystem.ls(path, detail=True)
            except FileNotFoundError:
                return []
        names = {
            entry["name"].rstrip("/").removeprefix(f"{path}/")
            for entry in entries
            if entry["type"] == "directory"
        }
        return sorted(names - {path})

    def remove_empty_folders(self, folder: str) -> None:
        """Tidy a local disk after deleting; object stores have no folders."""
        with self._at(folder) as (filesystem, path):
            if not isinstance(filesystem, LocalFileSystem):
                return
            for name, _, _ in sorted(os.walk(path), reverse=True):
                with contextlib.suppress(OSError):  # rmdir refuses a folder that is not empty
                    os.rmdir(name)

    def read_uri(self, uri: str) -> bytes:
        """Bytes of an absolute URI or path, or of a path relative to the root.

        An address may end in a range (``byte_ranges``): a member of an archive is read in place.
        The root's ``storage_options`` apply to URIs of the root's own scheme.

        Raises:
            FileNotFoundError: if there is nothing at that address.
            StoreError: if the scheme has no driver, or the address cannot be read for good.
        """
        whole, part = split_address(uri)
        try:
            with _plain_errors():
                data = self._read_part(whole, part)
        except OSError:
            raise
        except SdrpnError:
            raise
        except Exception as error:
            detail = " ".join(f"{type(error).__name__}: {error}".split())
            raise StoreError(f"{uri}: cannot be read ({detail}); open it by other means") from error
        return data if part is None else member_bytes(data, part)

    def _read_part(self, uri: str, part: ByteRange | None) -> bytes:
        if "://" not in uri and not os.path.isabs(uri):
            return self.read(uri) if part is None else self.read_range(uri, part.start, part.stop)
        options = self.storage_options if scheme_of(uri) == scheme_of(self.root) else {}
        filesystem, path = _connect(uri, options)
        if part is None:
            return bytes(filesystem.cat_file(path))
        return _read_range(filesystem, path, part.start, part.stop)

    def check_writable(self) -> None:
        """Write, read and remove a small object.

        Raises:
            StoreError: one line that names the root and the remedy.
        """
        key = f".sdrpn-write-check-{secrets.token_hex(8)}"
        try:
            self.put(key, b"sdrpn")
            if self.read(key) != b"sdrpn":
                raise StoreError(f"{self.root}: does not return what was written; choose another")
            self.delete([key])
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"{self.root}: {explain(error, self.root)}") from error


def in_parallel(function: Callable[[A], T], arguments: Iterable[A]) -> list[T]:
    """Apply a function that waits on the store to many arguments; results in their order.

    The first failure is raised once the calls under way have ended; no others begin. An interrupt
    does not wait for them, and nor does the end of the process: a server may be silent for minutes.
    """
    futures: list[Future[T]] = []
    waiting: deque[tuple[Future[T], A]] = deque()
    for argument in arguments:
        futures.append(Future())
        waiting.append((futures[-1], argument))

    def work() -> None:
        while True:
            try:
                future, argument = waiting.popleft()
            except IndexError:
                return
            try:
                future.set_result(function(argument))
            except BaseException as error:  # noqa: BLE001  raised below, in the caller's thread
                waiting.clear()
                future.set_exception(error)

    # Threads of an executor would hold up the end of the process.
    threads = [Thread(target=work, daemon=True) for _ in futures[:_NUM_THREADS]]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # a join without a limit might not let Ctrl-C through
                thread.join(_SECONDS_BETWEEN_LOOKS)
    finally:
        waiting.clear()
    return [future.result() for future in futures]


def _checked(key: str) -> str:
    if not key or key.startswith("/") or "\\" in key or {"", ".", ".."} & set(key.split("/")):
        raise StoreError(f"{key!r} is not a path below the store's root: use a/b/c without '..'")
    return key


def _absolute(root: str) -> str:
    """The root such that it means the same in every process, whatever its working directory."""
    if re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]+:(?!//)", root):
        raise StoreError(f"{root}: looks like a URI but lacks '://'; write it as scheme://path")
    if scheme_of(root) != "file":
        return root
    path = root.partition("://")[2] if "://" in root else root
    if not path:
        raise StoreError(f"{root!r}: the store's root is empty; name a folder or a URI")
    return absolute_uri(path)


def absolute_uri(path: str) -> str:
    """A path that means the same in every working directory; URIs stay as they are."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _connect(uri: str, options: Mapping[str, Any]) -> tuple[fsspec.AbstractFileSystem, str]:
    scheme = scheme_of(uri)
    path = uri if os.path.isabs(uri) else uri[7:] if uri.lower().startswith("file://") else None
    if path is not None:  # as it is: fsspec would take '::' in a name for a chain of addresses
        return LocalFileSystem(use_listings_cache=False, **options), path
    try:
        # Listings are cached by default, which would hide what other processes have written.
        options = {"use_listings_cache": False, **options}
        if scheme == "gs" and os.environ.get(_GCS_OVER_GRPC, "").lower() not in ("1", "true"):
            filesystem = _google_driver()(**options)
            path = filesystem._strip_protocol(uri)
        else:
            filesystem, path = fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        package = f"sdrpn[{_EXTRAS[scheme]}]" if scheme in _EXTRAS else _PACKAGES.get(scheme)
        remedy = f"pip install '{package}'" if package else str(error)
        raise StoreError(f"{uri}: no driver for {scheme}:// is installed; {remedy}") from error
    except Exception as error:
        if scheme.rpartition("::")[2] not in fsspec.available_protocols():
            known = "a folder, file://, memory://, s3:// or gs://"
            raise StoreError(f"{uri}: {error}; use {known}") from error
        raise StoreError(f"{uri}: {explain(error, uri)}") from error  # say, a token it cannot use
    return filesystem, path


def _google_driver() -> Callable[..., fsspec.AbstractFileSystem]:
    """The plain one, over HTTP alone.

    The other asks every bucket over gRPC whether it is a zonal one, which with any server but
    Google's takes a minute each time.
    """
    logger = logging.getLogger("gcsfs")
    if logger.level == logging.NOTSET:  # it logs the trace of every error that it also raises
        logger.setLevel(logging.CRITICAL)
    driver: Callable[..., fsspec.AbstractFileSystem]
    driver = importlib.import_module("gcsfs.core").GCSFileSystem
    return driver


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """A driver's own errors as builtin ones, so that everyone tells hiccups from facts alike."""
    try:
        yield
    except Exception as error:
        plain = as_os_error(error)
        if plain is None:
            raise
        raise plain from error


def _found(
    filesystem: fsspec.AbstractFileSystem, path: str, prefix: str, depth: int | None = None
) -> list[StoredObject]:
    start = f"{path}/"
    listed = filesystem.find(start, detail=True, **({} if depth is None else {"maxdepth": depth}))
    found = []
    for name, listed_info in sorted(listed.items()):
        info = listed_info
        if info.get("islink") and isinstance(filesystem, LocalFileSystem):
            facts = local_disk.facts(name)  # a listing does not follow links
            info = {"type": "other"} if facts is None else {"type": "file", **facts}
        if info["type"] == "file" and len(name) > len(start):  # S3 may hold folder markers
            found.append(_described(f"{prefix}{name[len(start) :]}", info))
    return found


def _read_range(filesystem: fsspec.AbstractFileSystem, path: str, start: int, stop: int) -> bytes:
    if start >= stop:
        return b""  # S3 refuses to be asked for nothing
    try:
        return bytes(filesystem.cat_file(path, start=start, end=stop))
    except Exception as error:
        if is_past_end(error):
            return b""
        raise


def _described(key: str, info: Mapping[str, Any]) -> StoredObject:
    names = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified", "created")
    version = next((str(info[name]) for name in names if info.get(name) is not None), "")
    return StoredObject(key, int(info["size"] or 0), _modified(info), version)


def _modified(info: Mapping[str, Any]) -> datetime:
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if value is not None:
            return datetime.fromtimestamp(float(value), UTC)
    return datetime.now(UTC)  # unknown age counts as new, so that nothing is collected too early
