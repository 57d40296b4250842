"""Reading downloaded files, wherever they lie: always the bytes that were downloaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from data_contracts.errors import SdrpnError
from sdrpn_core.images import UnreadableImage, decode_image
from tasks.artifacts.store import ArtifactStore
from tasks.storage.byte_ranges import MAX_MEMBER_BYTES, DamagedArchive
from tasks.storage.digests import digest
from tasks.storage.errors import TooLarge
from tasks.storage.scratch_folders import copied

# Ids do not follow what a server does not tell of, nor what is damaged in the store.
_GO_ON = (
    "run `sdrpn run` again; if it finds nothing new, `sdrpn stage STAGE --force` for download and "
    "each stage after it"
)
_MAKE_AGAIN = "is damaged in the store; run `sdrpn stage download --force`"


class ChangedFile(SdrpnError):
    """A file that stayed in place is not what it was when it was downloaded."""


def read_source_file(
    store: ArtifactStore, uri: str, sha256: str | None, max_bytes: int | None = None
) -> bytes:
    """Bytes of a downloaded file.

    Args:
        store: its storage options apply.
        uri: absolute, or relative to the store's root.
        sha256: digest at download; None skips the check.
        max_bytes: see ``Storage.read_uri``.

    Raises:
        ChangedFile: if it has changed or gone since.
        TooLarge: if it has more than ``max_bytes``.
    """
    try:
        data = store.read_uri(uri, max_bytes)
    except FileNotFoundError as error:
        raise ChangedFile(f"{uri}: gone since it was downloaded; {_GO_ON}") from error
    if sha256 is not None and digest(data) != sha256:
        raise ChangedFile(f"{uri}: changed since it was downloaded; {_GO_ON}")
    return data


@contextmanager
def open_source_file(
    store: ArtifactStore, key: str, sha256: str, folder: Path
) -> Iterator[BinaryIO]:
    """A downloaded file of any size, to be read piece by piece.

    Args:
        store: where it is.
        key: relative to the store's root.
        sha256: digest at download.
        folder: local, for a copy that is checked before anything reads it.

    Raises:
        ChangedFile: if it has changed or gone since.
    """
    copy = folder / "source-file"
    try:
        with store.storage.reader(key) as source:
            found, _ = copied(source, copy)
    except FileNotFoundError as error:
        raise ChangedFile(f"{key}: {_MAKE_AGAIN}") from error
    if found != sha256:
        raise ChangedFile(f"{key}: {_MAKE_AGAIN}")
    with copy.open("rb") as file:
        yield file
    copy.unlink()


def load_image(store: ArtifactStore, uri: str, sha256: str | None) -> Image.Image:
    """Upright RGB image of a record.

    Raises:
        UnreadableImage: if it is damaged, gone or no longer the same.
    """
    return decode_image(image_bytes(store, uri, sha256))


def image_bytes(store: ArtifactStore, uri: str, sha256: str | None) -> bytes:
    """An image of a record as it is stored.

    Raises:
        UnreadableImage: if it is gone or no longer the same.
    """
    try:
        return read_source_file(store, uri, sha256, MAX_MEMBER_BYTES)
    except (ChangedFile, DamagedArchive, TooLarge) as error:
        raise UnreadableImage(str(error)) from error
