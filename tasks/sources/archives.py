"""What is in an archive and where, without unpacking it; archives that are not safe are refused.

Nothing is ever written under a name that an archive chose. Refused all the same, because such an
archive is not what its publisher made: names that leave the folder, links and devices, two members
of one name, members that overlap or unpack to far more than they take. A name that is no Unicode is
odd but not unsafe: whether it matters depends on whether the member is wanted.
"""

import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import shorten
from typing import IO, BinaryIO, Self

from data_contracts.errors import SdrpnError, one_line
from sdrpn_core.source_paths import leaves_folder
from tasks.storage.byte_ranges import MAX_MEMBER_BYTES, RATIO_FROM_BYTES, ByteRange, max_unpacked

_MAX_GZIP_RATIO = 50
"""Of a whole gzipped tar."""
_GZIP_RATIO_FROM_BYTES = 16 << 20
"""The headers of thousands of little files beside the pictures pack better than any picture."""
_MAX_ZIP_HEADERS = 30 + 2 * 0xFFFF + 24
"""Of an entry: what stands before its data, name and extra fields included, and what stands after
it. The next may begin gigabytes later."""
_MAX_HEADER_BYTES = 1 << 20
"""From one member of a tar to the next: long names and the like are read whole, however long they
say they are."""
_MAX_REASON = 120
_ENCRYPTED = 1
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    NotImplementedError,
    RecursionError,  # each header of a tar's members may have another before it
    ValueError,  # of headers that should hold numbers or UTF-8, and do not
)


class UnsafeArchive(SdrpnError):
    """An archive is refused, or cannot be read; the message names it and the member."""


class NotRewritten(SdrpnError):
    """An archive cannot be rewritten on this machine's disk, whatever is in it."""


@dataclass(frozen=True)
class Member:
    """One file of an archive."""

    name: str
    """Bytes of a tar's name that are no UTF-8 are lone surrogates in it."""
    where: ByteRange
    num_bytes: int
    """Unpacked."""


def archive_kind(file: BinaryIO, uri: str) -> str:
    """``zip``, ``tar`` or ``tar.gz``, by content.

    Raises:
        UnsafeArchive: if it is none of them.
    """
    file.seek(0)
    start = file.read(512)
    file.seek(0)
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if start[:2] == b"\x1f\x8b":
        return "tar.gz"
    if start[257:262] == b"ustar" or (start and not start.strip(b"\0")):
        return "tar"
    raise UnsafeArchive(f"{uri}: is no zip, tar or tar.gz; name one of these, or a folder")


def members(file: BinaryIO, uri: str) -> Iterator[Member]:
    """Files of a zip or plain tar, in its order.

    Args:
        file: the archive, seekable.
        uri: its address, for messages.

    Raises:
        UnsafeArchive: if it is damaged, or a member is not safe.
    """
    seen: set[str] = set()
    kind = archive_kind(file, uri)
    if kind == "tar.gz":
        raise ValueError("a gzipped tar has no ranges: rewrite it first")
    try:
        for member in _zip_members(file) if kind == "zip" else _tar_members(file):
            if member.name in seen:
                raise _Refused(f"holds two members named {member.name!r}")
            seen.add(member.name)
            yield member
    except _Refused as error:
        raise UnsafeArchive(f"{uri}: {error}; refused, get it again from its publisher") from error
    except _DAMAGED as error:
        raise UnsafeArchive(f"{uri}: is damaged ({_brief(error)}); get it again") from error


def _brief(error: Exception) -> str:
    """What an error says; some say all that should have been a number."""
    return shorten(one_line(error), _MAX_REASON)


class _Refused(Exception):
    """Why an archive is not safe."""


class _Header(tarfile.TarInfo):
    """Header of a tar that must go on to its end block; ``tarfile`` ends at any damaged one."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error}; the end of the archive is missing") from error


def _zip_members(file: BinaryIO) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        starts = [entry.header_offset for entry in entries]
        for entry, stop in zip(entries, [*starts, archive.start_dir][1:], strict=True):
            is_folder = entry.filename.endswith("/")
            _check_name(entry.filename.rstrip("/") if is_folder else entry.orig_filename)
            if is_folder:
                continue
            _check_entry(entry)
            if entry.header_offset + entry.compress_size > stop:
                raise _Refused(f"member {entry.filename!r} overlaps the next")
            stop = min(stop, entry.header_offset + _MAX_ZIP_HEADERS + entry.compress_size)
            where = ByteRange(entry.header_offset, stop, entry.compress_size)
            yield Member(entry.filename, where, entry.file_size)


def _check_entry(entry: zipfile.ZipInfo) -> None:
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise _Refused(f"member {entry.filename!r} is a link or a device")
    if entry.flag_bits & _ENCRYPTED:
        raise _Refused(f"member {entry.filename!r} is encrypted")
    if entry.compress_type not in _METHODS:
        raise _Refused(f"member {entry.filename!r} is neither stored nor deflated")
    _check_size(entry.filename, entry.file_size)
    if entry.file_size > max_unpacked(entry.compress_size):
        raise _Refused(
            f"member {entry.filename!r} unpacks from {entry.compress_size} to {entry.file_size} "
            "bytes (a bomb)"
        )


class _Metered(io.RawIOBase):
    """Bytes of a tar, of which only so many are read in search of its next member."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self._file = file
        self._num_left = _MAX_HEADER_BYTES

    def allow(self, num_bytes: int) -> None:
        """A member is found, of which so many bytes may be read too."""
        self._num_left = _MAX_HEADER_BYTES + num_bytes

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= self._num_left:
            raise _Refused(f"holds headers of more than {_MAX_HEADER_BYTES} bytes (a bomb)")
        data = self._file.read(size)
        self._num_left -= len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _tar_members(file: BinaryIO) -> Iterator[Member]:
    metered = _Metered(file)
    with tarfile.open(fileobj=metered, mode="r:", tarinfo=_Header) as archive:
        for info in archive:
            metered.allow(0)
            if _is_wanted(info):
                where = ByteRange(info.offset_data, info.offset_data + info.size)
                yield Member(_plain(info.name), where, info.size)
            _forget(archive)  # it keeps every member, which for a million is a gigabyte


def _is_wanted(info: tarfile.TarInfo) -> bool:
    _check_name(info.name)
    if info.isdir():
        return False
    if not info.isreg() or info.issparse():
        raise _Refused(f"member {info.name!r} is a link or a device")
    _check_size(info.name, info.size)
    return True


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _check_name(name: str) -> None:
    if leaves_folder(name):
        raise _Refused(f"member {name!r} would lie outside the folder")


def _check_size(name: str, num_bytes: int) -> None:
    if num_bytes < 0:
        raise _Refused(f"member {name!r} has a size below zero")
    if num_bytes > MAX_MEMBER_BYTES:
        raise _Refused(f"member {name!r} has {num_bytes} bytes, more than any image")


def gunzip_tar(packed: BinaryIO, num_packed: int, plain: IO[bytes], uri: str) -> None:
    """Rewrite a gzipped tar as a plain one, member by member, under the rules of ``members``.

    Raises:
        UnsafeArchive: if it is damaged, or a member is not safe.
        NotRewritten: if the disk is full, or fails.
    """
    limit = max(_GZIP_RATIO_FROM_BYTES, _MAX_GZIP_RATIO * num_packed)
    seen: set[str] = set()
    try:
        with (
            gzip.GzipFile(fileobj=packed) as unpacked,
            _Metered(unpacked) as metered,
            tarfile.open(fileobj=metered, mode="r|", tarinfo=_Header) as source,
            tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as target,
        ):
            for info in source:
                _forget(source)
                _check_ratio(unpacked.tell() + info.size, limit)
                if not _is_wanted(info):
                    metered.allow(0)
                    continue
                metered.allow(info.size)
                name = _plain(info.name)
                if name in seen:
                    raise _Refused(f"holds two members named {name!r}")
                seen.add(name)
                add_member(target, name, info.size, source.extractfile(info))
            while unpacked.read(RATIO_FROM_BYTES):  # the CRC is at the very end
                _check_ratio(unpacked.tell(), limit)
    except _Refused as error:
        raise UnsafeArchive(f"{uri}: {error}; refused, get it again from its publisher") from error
    except (*_DAMAGED, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of this machine's disk
            raise NotRewritten(
                f"{uri}: cannot be rewritten as a plain tar ({error}); make room, or set "
                "downloads.folder to another disk"
            ) from error
        raise UnsafeArchive(f"{uri}: is damaged ({_brief(error)}); get it again") from error


def _check_ratio(num_bytes: int, limit: int) -> None:
    if num_bytes > limit:
        raise _Refused(f"unpacks to more than {_MAX_GZIP_RATIO} times its size (a bomb)")


def add_member(archive: tarfile.TarFile, name: str, num_bytes: int, file: IO[bytes] | None) -> None:
    """Append one file; nothing but its name and bytes is kept."""
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    archive.addfile(info, file)
    _forget(archive)


def _forget(archive: tarfile.TarFile) -> None:
    archive.members = []  # type: ignore[attr-defined]
