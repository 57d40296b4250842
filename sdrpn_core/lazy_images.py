"""One reader at a time for images that Pillow reads when their pixels are first asked for.

Two threads that load one image mix up what they decode, without a word; so do two images that are
read through one file object, as the pages of a TIFF are.
"""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from threading import Lock

from PIL import Image


class _LocksOfObjects:
    """A lock for each object that somebody is at; none is kept for the others."""

    def __init__(self) -> None:
        self._own = Lock()
        self._locks: dict[int, Lock] = {}
        self._num_users: dict[int, int] = {}

    @contextmanager
    def only_user(self, thing: object) -> Generator[None]:
        """Wait for the others that are at this object."""
        key = id(thing)
        with self._own:
            lock = self._locks.setdefault(key, Lock())
            self._num_users[key] = self._num_users.get(key, 0) + 1
        try:
            with lock:
                yield
        finally:
            with self._own:
                self._num_users[key] -= 1
                if not self._num_users[key]:
                    del self._locks[key], self._num_users[key]


_IMAGES = _LocksOfObjects()
_FILES = _LocksOfObjects()
"""Taken after an image's, never before it."""


@contextmanager
def only_reader(image: Image.Image) -> Generator[None]:
    """Load an image, and what else it reads of its file, while no other thread does."""
    with _IMAGES.only_user(image):
        file = getattr(image, "fp", None)  # gone once a single picture is loaded
        with nullcontext() if file is None else _FILES.only_user(file):
            yield
