"""Storage that fails, or lets another writer in between, at a chosen write."""

from collections.abc import Callable
from typing import Any, TypeVar

from tasks.artifacts.store import ArtifactStore
from tasks.storage.storage import Storage

T = TypeVar("T")


class Fault(Exception):
    """The injected failure."""


class HookedStorage(Storage):
    """Calls ``hook(number, is_done)`` before and after each write or deletion, counted from 1."""

    hook: Callable[[int, bool], None] = staticmethod(lambda number, is_done: None)
    num_writes = 0

    def _counted(self, write: Callable[..., T], *arguments: Any) -> T:
        self.num_writes += 1
        number = self.num_writes
        self.hook(number, False)
        result = write(*arguments)
        self.hook(number, True)
        return result

    def put(self, key: str, data: bytes) -> None:
        self._counted(super().put, key, data)

    def create(self, key: str, data: bytes) -> bool:
        return self._counted(super().create, key, data)

    def delete(self, keys: Any) -> None:
        for key in keys:
            self._counted(super().delete, [key])


class UnconditionalStorage(HookedStorage):
    """A store that ignores conditional puts: the last of two racing writers wins."""

    def create(self, key: str, data: bytes) -> bool:
        if self.size(key) is not None:
            return False
        self.put(key, data)
        return True


class UnlistableStorage(Storage):
    """A store whose listings are stale: here, of no use at all."""

    def find(self, folder: str) -> Any:
        raise AssertionError("listed")

    folders = find


def over(store: ArtifactStore, kind: type[Storage]) -> ArtifactStore:
    """The same store through another storage."""
    other = ArtifactStore(store.root, store.storage.storage_options)
    other.storage = kind(store.root, store.storage.storage_options)
    return other


def failing(store: ArtifactStore, fail_at: int, *, after: bool) -> ArtifactStore:
    """The same store, losing write ``fail_at`` or, if ``after``, only the answer to it."""

    def hook(number: int, is_done: bool) -> None:
        if number == fail_at and is_done == after:
            raise Fault(f"write {number}")

    broken = over(store, HookedStorage)
    broken.storage.hook = hook
    return broken
