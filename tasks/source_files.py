"""Reading downloaded files, wherever they lie: always the bytes that were downloaded."""

import hashlib

from PIL import Image

from data_contracts.errors import SdrpnError
from sdrpn_core.images import UnreadableImage, decode_image
from tasks.artifact_store import ArtifactStore


class ChangedFile(SdrpnError):
    """A file that stayed in place is not what it was when it was downloaded."""


def read_source_file(store: ArtifactStore, uri: str, sha256: str | None) -> bytes:
    """Bytes of a downloaded file.

    Args:
        store: its storage options apply.
        uri: absolute, or relative to the store's root.
        sha256: digest at download; None skips the check.

    Raises:
        ChangedFile: if it has changed or gone since.
    """
    try:
        data = store.read_uri(uri)
    except FileNotFoundError as error:
        raise ChangedFile(f"{uri}: gone since it was downloaded; run `sdrpn run` again") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise ChangedFile(f"{uri}: changed since it was downloaded; run `sdrpn run` again")
    return data


def load_image(store: ArtifactStore, uri: str, sha256: str | None) -> Image.Image:
    """Upright RGB image of a record.

    Raises:
        UnreadableImage: if it is damaged, gone or no longer the same.
    """
    try:
        return decode_image(read_source_file(store, uri, sha256))
    except ChangedFile as error:
        raise UnreadableImage(str(error)) from error
