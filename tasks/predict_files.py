"""Files that ``sdrpn predict`` reads and writes: what can be refused before a model is loaded."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from data_contracts.errors import SdrpnError
from data_contracts.settings_files import ConfigError
from sdrpn_core.images import decode_image
from tasks.answer_files import check_pictures
from tasks.artifacts.store import ArtifactStore
from tasks.asked_questions import Asked
from tasks.fetching.addresses import local_file
from tasks.storage.addresses import absolute_uri, folder_and_name
from tasks.storage.byte_ranges import MAX_MEMBER_BYTES
from tasks.storage.errors import StoreUnreachable


def read_image(store: ArtifactStore, path: str) -> Image.Image:
    """Upright RGB image from a path or URI.

    Raises:
        ConfigError: if there is no such image, it cannot be had, or it is none.
        StoreUnreachable: if where it lies does not answer, so that it may be had another time.
    """
    if not path:  # as a path, it would be the working directory
        raise ConfigError(
            "the IMAGE is empty: give one; perhaps a variable of the shell is not set"
        )
    try:
        return decode_image(store.read_uri(absolute_uri(path), MAX_MEMBER_BYTES))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such image; check the path") from None
    except ConnectionError as error:
        raise StoreUnreachable(
            f"{path}: cannot be reached ({error}); check the network and run again"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{path}: cannot be read as an image file ({reason})") from None
    except SdrpnError as error:
        raise ConfigError(f"{path}: {error}") from error


def check_outputs(
    store: ArtifactStore, output: str, overlays: Path | None, asked: Sequence[Asked]
) -> None:
    """See to it, before anything is loaded, that answers and pictures can be written.

    Raises:
        ConfigError: if the output is a folder, or the pictures' folder is called like a picture,
            holds what is asked about or has another output's pictures.
        StoreError: naming the folder and the remedy.
    """
    root, name = folder_and_name(absolute_uri(output))
    if not name or Path(output).is_dir():
        raise ConfigError(f"--output {output}: is a folder; name a file, such as answers.jsonl")
    store.storage.elsewhere(root).check_writable()
    if overlays is not None:
        if overlays.suffix.lower() in Image.registered_extensions():
            raise ConfigError(
                f"--overlay {overlays}: many images need a folder; name one, such as pictures"
            )
        _check_apart(overlays, asked)
        check_pictures(store.storage, str(overlays), output)
        store.storage.elsewhere(absolute_uri(str(overlays))).check_writable()


def _check_apart(overlays: Path, asked: Sequence[Asked]) -> None:
    """Drawings among the images might replace some, and would be found by the next pattern."""
    paths = (local_file(image) for image in {row.image for row in asked})
    if overlays.resolve() in {path.resolve().parent for path in paths if path is not None}:
        raise ConfigError(
            f"--overlay {overlays}: is the folder of images that are asked about; name another"
        )


def check_picture_name(path: Path, image: str) -> None:
    """See to it that a picture can be saved under this name, and is not drawn over the image.

    Raises:
        ConfigError: if its ending is no format's that takes colour pictures, or it is the image.
    """
    source = local_file(image)
    if source is not None and path.resolve() == source.resolve():
        raise ConfigError(f"--overlay {path}: is the image itself; name another file")
    try:
        _encoded(Image.new("RGB", (8, 8)), path.suffix)
    except (KeyError, OSError, ValueError):  # no format; one that is only read; none for RGB
        raise ConfigError(
            f"{path}: no picture can be written in a format of this ending; use .png or .jpg (a "
            "folder is for many images)"
        ) from None


def picture_bytes(picture: Image.Image, suffix: str) -> bytes:
    """A file whose name ends in ``suffix``.

    Raises:
        ConfigError: if pictures of its format cannot be as large.
    """
    try:
        return _encoded(picture, suffix)
    except (OSError, OverflowError, ValueError, struct.error):  # the last: a GIF by Pillow 12
        raise ConfigError(
            f"{picture.width} x {picture.height} pixels are too many for a picture in {suffix}: "
            "name a .png"
        ) from None


def _encoded(picture: Image.Image, suffix: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, Image.registered_extensions()[suffix.lower()])
    return buffer.getvalue()
