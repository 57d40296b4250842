"""Files that earlier fetches left: which there are, and whether they are still what is wanted."""

from dataclasses import dataclass
from pathlib import Path

from data_contracts.addresses import file_name
from data_contracts.sources import RemoteFile
from tasks.fetching.partial_file import begun_files, bytes_on_disk, note_of, whole_files
from tasks.fetching.remote import RemoteInfo
from tasks.storage.digests import digest


@dataclass(frozen=True)
class FetchedFile:
    """A verified local file."""

    path: Path
    num_bytes: int
    sha256: str


def local_path(file: RemoteFile, folder: Path) -> Path:
    """Where a file is kept once it is here.

    Known bytes are looked for under every address: signed URLs are renewed, and mirrors change.
    """
    own = _own_path(file, folder)
    note = note_of(own)
    if file.sha256 is None or (note is not None and note.sha256 == file.sha256):
        return own
    found = whole_files(folder, file.sha256) or begun_files(folder, file.sha256)
    return own if own in found or not found else found[0]


def _own_path(file: RemoteFile, folder: Path) -> Path:
    name = file_name(file.uri) or "file"
    plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[-80:]
    return folder / f"{digest(file.uri.encode())[:12]}-{plain}"


def kept_file(file: RemoteFile, folder: Path) -> FetchedFile | None:
    """The file if an earlier fetch kept it and its published digest is the one wanted."""
    path = local_path(file, folder)
    note = note_of(path)
    if note is None or file.sha256 is None or note.sha256 != file.sha256:
        return None
    return FetchedFile(path, note.num_bytes, note.sha256)


def earlier_copy(file: RemoteFile, folder: Path) -> FetchedFile | None:
    """What an earlier fetch verified, for when its server cannot be asked if that is still so."""
    path = local_path(file, folder)
    note = note_of(path)
    if note is None or file.sha256 not in (None, note.sha256):
        return None
    return FetchedFile(path, note.num_bytes, note.sha256)


def is_fetched(file: RemoteFile, folder: Path, info: RemoteInfo) -> bool:
    """Whether an earlier fetch left what the server still has."""
    return still_same(file, local_path(file, folder), info) is not None


def missing_bytes(file: RemoteFile, folder: Path, info: RemoteInfo) -> int:
    """Disk space that fetching a file will still take, as far as its size is known."""
    if is_fetched(file, folder, info):
        return 0
    return max(0, (info.num_bytes or 0) - bytes_on_disk(local_path(file, folder)))


def still_same(file: RemoteFile, path: Path, info: RemoteInfo) -> FetchedFile | None:
    """What an earlier fetch left at a path, if it is still what the server has."""
    note = note_of(path)
    if note is None:
        return None
    expected = file.sha256 or info.sha256
    is_same = (note.version, note.num_bytes) == (info.version, info.num_bytes)
    if note.sha256 == expected or (expected is None and is_same):
        return FetchedFile(path, note.num_bytes, note.sha256)
    return None
