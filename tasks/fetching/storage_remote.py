"""Files on object stores and disks, through the storage module."""

from collections.abc import Iterator

from tasks.fetching.remote import FileChanged, Hiccup, RemoteInfo, Unavailable
from tasks.storage.errors import BadAddress, StoreError, StoreUnreachable
from tasks.storage.storage import Storage
from tasks.storage.stored_objects import StoredObject

_CHUNK_BYTES = 1 << 22
_FOR_GOOD = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class StorageRemote:
    """One key of a storage."""

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage = storage
        self._key = key

    def describe(self) -> RemoteInfo:
        """See ``Remote``."""
        found = self._look()
        return RemoteInfo(found.num_bytes, found.version, takes_ranges=True)

    def stream(self, start: int, stop: int | None, expected: RemoteInfo) -> Iterator[bytes]:
        """See ``Remote``."""
        found = self._look()
        is_other = expected.sha256 is None and found.version != expected.version
        if is_other or found.num_bytes != expected.num_bytes:
            raise FileChanged
        end = found.num_bytes if stop is None else stop
        for position in range(start, end, _CHUNK_BYTES):
            wanted = min(_CHUNK_BYTES, end - position)
            data = self._read(position, position + wanted)
            if len(data) != wanted:
                raise Hiccup(f"{len(data)} bytes came instead of {wanted}")
            yield data

    def _look(self) -> StoredObject:
        try:
            found = self._storage.describe_one(self._key)
        except BadAddress as error:  # no mirror is a remedy for what the settings say
            raise BadAddress(f"{self._storage.uri(self._key)}: {error}") from error
        except StoreUnreachable as error:
            raise Hiccup(str(error)) from error
        except StoreError as error:
            raise Unavailable(str(error)) from error
        except _FOR_GOOD as error:
            raise Unavailable(f"cannot be read ({error}); check the address") from error
        except OSError as error:
            raise Hiccup(str(error)) from error
        if found is None:
            raise Unavailable("does not exist; check the address")
        return found

    def _read(self, start: int, stop: int) -> bytes:
        try:
            return self._storage.read_range(self._key, start, stop)
        except FileNotFoundError as error:
            raise FileChanged from error
        except StoreUnreachable as error:
            raise Hiccup(str(error)) from error
        except StoreError as error:
            raise Unavailable(str(error)) from error
        except OSError as error:
            raise Hiccup(str(error)) from error
