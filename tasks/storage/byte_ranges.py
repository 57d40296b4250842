"""Addresses of a part of a file: how images are read from archives without unpacking them.

``s3://bucket/a.tar#bytes=512-9000`` names bytes 512 to 9000 (half-open).
``a.zip#zip=512-9000,8400`` names a zip entry whose local header starts at 512, whose data ends
before 9000 and takes 8400 bytes there. Anything that can read a range can read these; no index is
needed, so that every worker reads any image at once.
"""

import re
import struct
import zlib
from dataclasses import dataclass

from data_contracts.errors import SdrpnError

MAX_MEMBER_BYTES = 1 << 29
"""Larger members are refused: no image is that large, but a bomb is."""
MAX_RATIO = 200
"""A member that unpacks to more times its size is a bomb; photographs stay near 1."""
RATIO_FROM_BYTES = 1 << 20
"""Smaller ones are not."""

_OFFSET = "([0-9]{1,18})"  # larger numbers are no sizes of files
_FRAGMENT = re.compile(rf"#(?:bytes={_OFFSET}-{_OFFSET}|zip={_OFFSET}-{_OFFSET},{_OFFSET})$")
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_STORED, _DEFLATED = 0, 8


class DamagedArchive(SdrpnError):
    """Bytes are not the archive member that they should be."""


@dataclass(frozen=True)
class ByteRange:
    """A part of a file, half-open."""

    start: int
    stop: int
    num_packed: int | None = None
    """Bytes of a zip entry's data; None for plain bytes."""

    def __str__(self) -> str:
        """The end of an address."""
        if self.num_packed is None:
            return f"#bytes={self.start}-{self.stop}"
        return f"#zip={self.start}-{self.stop},{self.num_packed}"


def split_address(address: str) -> tuple[str, ByteRange | None]:
    """The file's address, and which part of it is meant (None for all)."""
    match = _FRAGMENT.search(address)
    if match is None:
        return address, None
    start, stop, zip_start, zip_stop, packed = match.groups()
    where = address[: match.start()]
    if packed is None:
        return where, ByteRange(int(start), int(stop))
    return where, ByteRange(int(zip_start), int(zip_stop), int(packed))


def max_unpacked(num_packed: int) -> int:
    """Bytes that so many may unpack to."""
    return min(MAX_MEMBER_BYTES, max(RATIO_FROM_BYTES, MAX_RATIO * num_packed))


def member_bytes(data: bytes, wanted: ByteRange) -> bytes:
    """The member itself, from the bytes of its range.

    Raises:
        DamagedArchive: if they end early, are no zip entry, or not what its CRC-32 says.
    """
    if len(data) != wanted.stop - wanted.start:
        raise DamagedArchive(f"ends early: {len(data)} of {wanted.stop - wanted.start} bytes")
    return data if wanted.num_packed is None else _unzip(data, wanted.num_packed)


def _unzip(data: bytes, num_packed: int) -> bytes:
    if len(data) < _LOCAL_HEADER.size:
        raise DamagedArchive("is no zip entry: too short")
    magic, _, _, method, _, _, crc, _, _, name, extra = _LOCAL_HEADER.unpack_from(data)
    start = _LOCAL_HEADER.size + name + extra
    packed = data[start : start + num_packed]
    if magic != b"PK\x03\x04" or len(packed) != num_packed:
        raise DamagedArchive("is no zip entry: its header is damaged")
    plain = packed if method == _STORED else _inflate(packed, method)
    if zlib.crc32(plain) not in _crcs(crc, data[start + num_packed :]):
        raise DamagedArchive("is a zip entry whose bytes are not those that were packed (CRC-32)")
    return plain


def _crcs(in_header: int, after: bytes) -> set[int]:
    """What an entry's CRC-32 may be: in its header, or after its data where it was streamed."""
    signed = after.removeprefix(b"PK\x07\x08")  # writers may leave this signature out
    return {in_header, *(int.from_bytes(at[:4], "little") for at in (after, signed) if len(at) > 3)}


def _inflate(packed: bytes, method: int) -> bytes:
    if method != _DEFLATED:
        raise DamagedArchive(f"is a zip entry of method {method}; only stored and deflated ones")
    limit = max_unpacked(len(packed))  # whatever the archive's directory says
    try:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        plain = inflater.decompress(packed, limit)
    except zlib.error as error:
        raise DamagedArchive(f"cannot be inflated ({error})") from error
    if not inflater.eof:
        raise DamagedArchive(f"is cut off, or inflates to more than {limit} bytes")
    return plain
