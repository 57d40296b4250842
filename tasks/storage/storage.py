"""Bytes in and out of any URI.

A key is a path below the root, with forward slashes. Objects appear whole or not at all: one PUT of
finished bytes on object stores, a temporary file and a link or rename on local disks. Writing
through ``with fs.open(url, "wb")`` is not used anywhere, because it publishes a truncated object
when the block raises.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from data_contracts.errors import SdrpnError, one_line
from sdrpn_core.threads import in_parallel
from tasks.storage import local_disk
from tasks.storage.addresses import absolute_root, checked_key, quoted
from tasks.storage.byte_ranges import ByteRange, member_bytes, split_address
from tasks.storage.digests import digest
from tasks.storage.drivers import HTTP, FileSystem, connect, is_local
from tasks.storage.errors import (
    UNWRITABLE,
    StoreError,
    StoreUnreachable,
    TooLarge,
    explain,
    is_past_end,
    plain_errors,
    scheme_of,
)
from tasks.storage.stored_objects import StoredObject, described, found_below

_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict")


class Storage:
    """Objects below one root URI.

    Costs nothing to build and may be sent to other processes: the driver is opened on first use,
    anew in each process.
    """

    def __init__(self, root: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.root = absolute_root(root)
        self.storage_options = dict(storage_options or {})
        self._opened: tuple[int, FileSystem, str] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root, self.storage_options)

    def _open(self) -> tuple[FileSystem, str]:
        """The driver and the root in its notation."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), *connect(self.root, self.storage_options))
        return self._opened[1:]

    @contextlib.contextmanager
    def _at(self, key: str) -> Iterator[tuple[FileSystem, str]]:
        """The driver and a key in its notation, for one access."""
        with self._at_root() as (filesystem, root):
            yield filesystem, f"{root}/{checked_key(key)}"

    @contextlib.contextmanager
    def _at_root(self) -> Iterator[tuple[FileSystem, str]]:
        """The driver and the root in its notation, for one access; see ``_explained``."""
        filesystem, root = self._open()
        with self._explained():
            yield filesystem, root.rstrip("/")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """What only a user can mend, or only waiting can, is said in terms of this root."""
        try:
            with plain_errors():
                yield
        except StoreError:
            raise
        except (PermissionError, NotADirectoryError) as error:
            raise StoreError(f"{self.root}: {explain(error, self.root)}") from error
        except ConnectionError as error:
            raise StoreUnreachable(f"{self.root}: {explain(error, self.root)}") from error
        except OSError as error:
            if error.errno in UNWRITABLE:
                raise StoreError(f"{self.root}: {explain(error, self.root)}") from error
            raise  # transient, or plain facts such as FileNotFoundError
        except SdrpnError:
            raise
        except Exception as error:
            raise StoreError(f"{self.root}: {explain(error, self.root)}") from error

    def elsewhere(self, root: str) -> "Storage":
        """Storage at another root; these options apply if it has the same scheme."""
        return Storage(root, self._options_at(root))

    def _options_at(self, uri: str) -> Mapping[str, Any]:
        """Those of the root, if a URI has its scheme."""
        return self.storage_options if scheme_of(uri) == scheme_of(self.root) else {}

    @property
    def is_shared(self) -> bool:
        """Whether other processes see what this one writes."""
        return scheme_of(self.root).rpartition("::")[2] != "memory"

    def key_of(self, name: str) -> str:
        """The key of a file that is called so below the root.

        Keys that come from a listing are keys already. On HTTP servers keys are parts of URLs.
        """
        return quoted(name) if scheme_of(self.root) in HTTP else name

    def uri(self, key: str) -> str:
        """Absolute address of a key."""
        return f"{self.root.rstrip('/')}/{key}"

    def read(self, key: str, max_bytes: int | None = None) -> bytes:
        """Whole object; of ``max_bytes`` see ``read_uri``.

        Raises:
            FileNotFoundError: if there is none.
            TooLarge: if it has more than ``max_bytes``.
        """
        with self._at(key) as (filesystem, path):
            return _read_whole(filesystem, path, max_bytes)

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
        return None if info is None else described(key, info)

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
            if is_local(filesystem):
                local_disk.publish_copy(Path(target), path, may_link)
            else:
                filesystem.put_file(str(path), target)  # one multi-part upload: whole or not at all

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole, replacing what is there."""
        with self._at(key) as (filesystem, path):
            if is_local(filesystem):
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
                if is_local(filesystem):
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

    def delete_all(self, keys: Collection[str]) -> None:
        """Remove objects in any order, many at a time; those already gone are fine."""
        in_parallel(lambda key: self.delete([key]), keys)

    def find(self, folder: str) -> list[StoredObject]:
        """Every object below a folder (never one that merely shares its first letters)."""
        with self._at(folder) as (filesystem, path):
            return found_below(filesystem, path, f"{folder}/")

    def find_all(self, depth: int) -> list[StoredObject]:
        """Every object at most so many folders below the root; 1 means in the root itself."""
        with self._at_root() as (filesystem, path):
            # Object stores list everything at once faster than folder by folder.
            found = found_below(filesystem, path, "", depth if is_local(filesystem) else None)
        return [stored for stored in found if stored.key.count("/") < depth]

    def describe(
        self, keys: Collection[str], max_bytes: int | None = None
    ) -> dict[str, StoredObject]:
        """Those of these objects that exist; on object stores by one listing of the root.

        What has no version, as on some HTTP servers, is read: its digest is its version.

        Raises:
            StoreError: if more than ``max_bytes`` would have to be read of one.
        """
        found: Mapping[str, Mapping[str, Any] | None]
        with self._at_root() as (filesystem, root):
            if is_local(filesystem):
                # A listing would not follow links, and datasets are often linked into place.
                found = {key: local_disk.facts(f"{root}/{checked_key(key)}") for key in keys}
            elif scheme_of(self.root) in HTTP:
                found = dict(zip(keys, in_parallel(self._info, keys), strict=True))
            else:
                listed = filesystem.find(f"{root}/", detail=True)
                found = {key: listed.get(f"{root}/{checked_key(key)}") for key in keys}
        known = {key: described(key, info) for key, info in found.items() if info is not None}
        unknown = [stored for stored in known.values() if not stored.version]
        digested = in_parallel(partial(self._digested, max_bytes), unknown)
        for stored, again in zip(unknown, digested, strict=True):
            if again is None:
                del known[stored.key]
            else:
                known[stored.key] = again
        return known

    def _digested(self, max_bytes: int | None, stored: StoredObject) -> StoredObject | None:
        """The same with its digest for a version; None if it is gone."""
        try:
            data = self.read(stored.key, max_bytes)
        except FileNotFoundError:
            return None
        except TooLarge as error:
            raise StoreError(f"{self.uri(stored.key)}: {error}; take it out") from error
        return replace(stored, num_bytes=len(data), version=f"sha256:{digest(data)}")

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
            if not is_local(filesystem):
                return
            for name, _, _ in sorted(os.walk(path), reverse=True):
                with contextlib.suppress(OSError):  # rmdir refuses a folder that is not empty
                    os.rmdir(name)

    def read_uri(self, uri: str, max_bytes: int | None = None) -> bytes:
        """Bytes of an absolute URI or path, or of a path relative to the root.

        An address may end in a range (``byte_ranges``): a member of an archive is read in place.
        The root's ``storage_options`` apply to URIs of the root's own scheme.

        Args:
            uri: the address.
            max_bytes: of a file of this machine's disk, or on an HTTP server, that is read whole.

        Raises:
            FileNotFoundError: if there is nothing at that address.
            OSError: if it is a device or a pipe, which may have no end.
            TooLarge: if it has more than ``max_bytes``.
            StoreError: if the scheme has no driver, or the address cannot be read for good.
        """
        whole, part = split_address(uri)
        try:
            with plain_errors():
                data = self._read_part(whole, part, max_bytes)
        except (OSError, SdrpnError):
            raise
        except Exception as error:
            detail = f"{type(error).__name__}: {one_line(error)}"
            raise StoreError(f"{uri}: cannot be read ({detail}); open it by other means") from error
        return data if part is None else member_bytes(data, part)

    def _read_part(self, uri: str, part: ByteRange | None, max_bytes: int | None) -> bytes:
        if "://" not in uri and not os.path.isabs(uri):
            if part is None:
                return self.read(uri, max_bytes)
            return self.read_range(uri, part.start, part.stop)
        filesystem, path = connect(uri, self._options_at(uri))
        if part is not None:
            return _read_range(filesystem, path, part.start, part.stop)
        return _read_whole(filesystem, path, max_bytes)

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


def _read_whole(filesystem: FileSystem, path: str, max_bytes: int | None) -> bytes:
    if is_local(filesystem):
        _require_file(path, max_bytes)
    limit = {"max_bytes": max_bytes} if scheme_of(path) in HTTP else {}
    return bytes(filesystem.cat_file(path, **limit))


def _require_file(path: str, max_bytes: int | None) -> None:
    """Refuse what has no end, or too late a one; whoever opens it says what else is wrong."""
    try:
        found = os.stat(path)
    except OSError:
        return
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise OSError(errno.EINVAL, "is a device or a pipe, not a file", path)
    if max_bytes is not None and found.st_size > max_bytes:
        raise TooLarge.than(max_bytes)


def _read_range(filesystem: FileSystem, path: str, start: int, stop: int) -> bytes:
    if start >= stop:
        return b""  # S3 refuses to be asked for nothing
    try:
        return bytes(filesystem.cat_file(path, start=start, end=stop))
    except Exception as error:
        if is_past_end(error):
            return b""
        raise
