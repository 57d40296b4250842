"""Decoding image files: always upright RGB and complete, or an error that says why not."""

import io
import struct
from functools import cache

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from data_contracts.errors import SdrpnError, one_line
from sdrpn_core.complete_files import complete_only
from sdrpn_core.jpeg_scans import MAX_SCANS, has_too_many_scans
from sdrpn_core.lazy_images import only_reader

MAX_PIXELS = 89_000_000
"""Larger images are refused before they are decoded (a small file can unpack to gigabytes)."""

_TOO_LARGE = f"more than the {MAX_PIXELS:,} pixels that are decoded"
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""What is read of the dozens that Pillow knows. Nobody publishes pictures in the others, whose
decoders are little used; that of EPS runs the file as a program, in Ghostscript."""
_JPEGS = {"JPEG", "MPO"}
"""The other has further pictures behind the first."""
_WIDE_MODES = {"I;16", "I;16L", "I;16B", "I;16N", "I"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(SdrpnError, ValueError):
    """Bytes that are not one complete, decodable image; the message is the reason."""


def decode_image(data: bytes) -> Image.Image:
    """Decode a file's bytes as an upright 8-bit RGB image.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled to 8 bits
    and of animations the first frame is taken. Common formats are read, ``_FORMATS``.

    Raises:
        UnreadableImage: if the image is truncated, damaged, too large, a bomb or not an image.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    try:
        return complete_only(lambda: _decode(data))
    except (UnreadableImage, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise UnreadableImage(_TOO_LARGE) from None
    except UnidentifiedImageError:
        raise UnreadableImage("not an image in a known format") from None
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        reason = one_line(error)
        raise UnreadableImage(f"damaged {_format_hint(data)}: {reason}") from error


def _decode(data: bytes) -> Image.Image:
    with _opened(data) as image:
        _check_size(image)
        return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """The picture as people see it: EXIF orientation applied, 8-bit RGB, first frame.

    Raises:
        UnreadableImage: if there are no pixels, they have no known range, the image is closed, or
            the file behind a lazily loaded one is damaged or a bomb.
    """
    if 0 in image.size:
        raise UnreadableImage(f"{image.width} x {image.height} has no pixels")
    try:
        with only_reader(image):
            _check_scans(image)
            complete_only(image.load)
            turn = _turn(image)
        upright = _to_rgb(image if turn is None else image.transpose(turn))
    except (UnreadableImage, MemoryError):
        raise
    except ValueError as error:  # of a closed image, or of a mode that has no way to RGB
        raise UnreadableImage(f"cannot be read: {one_line(error)}") from error
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise UnreadableImage(f"damaged {image.format or 'image'}: {one_line(error)}") from error
    upright.info = {}  # an orientation that stayed on would turn it once more, next time
    return upright


def is_stored_turned(data: bytes) -> bool:
    """Whether ``decode_image`` turns or flips the pixels of a file that it can decode."""
    with _opened(data) as image:
        return _turn(image) is not None


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_known_formats())


@cache
def _known_formats() -> tuple[str, ...]:
    """Those of ours that this Pillow was built with; it fails on names of others."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width} x {height} is {_TOO_LARGE}")


def _check_scans(image: Image.Image) -> None:
    """Refuse a JPEG that is still to be decoded, and would be for minutes."""
    file = getattr(image, "fp", None)
    if file is None or image.format not in _JPEGS:
        return
    position = file.tell()
    file.seek(0)
    is_bomb = has_too_many_scans(file.read())
    file.seek(position)
    if is_bomb:
        raise UnreadableImage(f"a JPEG of more than {MAX_SCANS} scans (a bomb)")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes it upright; a malformed EXIF block is no reason to lose the image."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, TypeError, ValueError, OSError, struct.error):
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode in _WIDE_MODES or image.mode == "F":
        return _narrow(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _narrow(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, where Pillow's own conversion would clip to white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise UnreadableImage(f"mode {image.mode} pixels have no known range; save it as 8 bit")
    is_8_bit = image.mode == "I" and values.max() <= 0xFF
    narrow = values if is_8_bit else np.round(values / 257)
    return Image.fromarray(narrow.astype(np.uint8))


def _format_hint(data: bytes) -> str:
    signatures = {b"\xff\xd8": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"RIFF": "WebP"}
    return next((name for start, name in signatures.items() if data.startswith(start)), "image")
