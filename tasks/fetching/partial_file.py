"""A file on its way: bytes at their offsets, and a journal of the parts that are complete.

The finished file appears under its name by one rename, with a note of what was verified beside it.
Stopped at any point, what the journal names is on disk, because data is flushed before it is named.
"""

import fcntl
import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tasks.storage.local_disk import sync

_JOURNAL = ".parts.json"
_NOTE = ".verified.json"


@dataclass(frozen=True)
class Note:
    """What a finished file was when it was verified."""

    version: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Origin:
    """What the bytes of a partial file belong to; parts of different origins are never mixed."""

    uri: str
    version: str
    num_bytes: int
    part_bytes: int

    @classmethod
    def of_digest(cls, sha256: str, num_bytes: int, part_bytes: int) -> Self:
        """With a digest to check, parts from different addresses may be put together."""
        return cls(_of_digest(sha256), "", num_bytes, part_bytes)


class PartialFile:
    """Parts of one file of known size. Safe to use from several threads."""

    def __init__(self, path: Path, origin: Origin) -> None:
        """Go on from the parts on disk if they are of the same origin, else start over."""
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._journal = path.with_name(f"{path.name}{_JOURNAL}")
        self._origin = origin
        self._lock = threading.Lock()
        self._done = self._resume()
        self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT, 0o644)
        os.truncate(self._file, origin.num_bytes)

    def missing(self) -> list[tuple[int, int]]:
        """Half-open byte ranges that are still to come, in order."""
        size, total = self._origin.part_bytes, self._origin.num_bytes
        return [
            (start, min(start + size, total))
            for start in range(0, total, size)
            if start not in self._done
        ]

    @property
    def num_bytes_done(self) -> int:
        """Bytes in complete parts."""
        return self._origin.num_bytes - sum(stop - start for start, stop in self.missing())

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes at their place."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    def complete(self, start: int) -> None:
        """Note that the part that starts here is whole."""
        os.fdatasync(self._file)
        with self._lock:
            self._done.add(start)
            document = {"origin": asdict(self._origin), "done": sorted(self._done)}
            _write(self._journal, document)

    def close(self) -> None:
        """Let go of the file; it stays for the next attempt."""
        os.close(self._file)

    def discard(self) -> None:
        """Forget every byte."""
        self._journal.unlink(missing_ok=True)
        self._partial.unlink(missing_ok=True)

    def publish(self, version: str, sha256: str) -> None:
        """Make the file appear under its name."""
        publish(self._partial, self._path, Note(version, self._origin.num_bytes, sha256))
        self._journal.unlink(missing_ok=True)

    @property
    def path(self) -> Path:
        """Where the bytes are until then."""
        return self._partial

    def _resume(self) -> set[int]:
        document = _read(self._journal)
        if (
            not isinstance(document, dict)
            or document.get("origin") != asdict(self._origin)
            or not self._partial.exists()
        ):
            self.discard()
            return set()
        return {int(start) for start in document["done"]}


def write_from_start(path: Path, chunks: Iterable[bytes]) -> tuple[Path, int]:
    """Write a file of unknown size; returns where it is until it is published, and its size.

    Nothing of it stays if it fails, as nothing can go on from there.
    """
    partial = path.with_name(f"{path.name}.partial")
    num_bytes = 0
    try:
        with partial.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
                num_bytes += len(chunk)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):  # what went wrong first is the reason
            partial.unlink()
        raise
    return partial, num_bytes


def publish(partial: Path, path: Path, note: Note) -> None:
    """Rename a verified file to its name.

    At no time is there a note beside bytes that it does not describe: stopped halfway, there is no
    note, and the file is fetched again.
    """
    _note_path(path).unlink(missing_ok=True)
    os.replace(partial, path)
    sync(path.parent)
    _write(_note_path(path), asdict(note))


def note_of(path: Path) -> Note | None:
    """What a finished file was when it was verified; None if there is none, or it was edited."""
    document = _read(_note_path(path))
    if not isinstance(document, dict) or not path.is_file():
        return None
    try:
        note = Note(**document)
    except TypeError:
        return None
    return note if path.stat().st_size == note.num_bytes else None


def whole_files(folder: Path, sha256: str) -> list[Path]:
    """Finished files with a digest, under whatever names."""
    notes = [(path, note_of(path)) for path in _named(folder, _NOTE)]
    return [path for path, note in notes if note is not None and note.sha256 == sha256]


def begun_files(folder: Path, sha256: str) -> list[Path]:
    """Files that are to have a digest, under names that no finished file has."""
    paths = [path for path in _named(folder, _JOURNAL) if not path.exists()]
    return [path for path in paths if _begun_as(path) == _of_digest(sha256)]


def bytes_on_disk(path: Path) -> int:
    """Disk space that an unfinished file takes already; its length says nothing, it has holes."""
    partial = path.with_name(f"{path.name}.partial")
    return partial.stat().st_blocks * 512 if partial.exists() else 0


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One process at a time; a second then finds what the first has fetched."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}{_NOTE}")


def _named(folder: Path, suffix: str) -> list[Path]:
    """Files that have something of that suffix beside them, or will have."""
    found = sorted(folder.glob(f"*{suffix}"))
    return [path.with_name(path.name.removesuffix(suffix)) for path in found]


def _begun_as(path: Path) -> object:
    """The address, or the digest, that a journal gives for its parts."""
    document = _read(path.with_name(f"{path.name}{_JOURNAL}"))
    origin = document.get("origin") if isinstance(document, dict) else None
    return origin.get("uri") if isinstance(origin, dict) else None


def _of_digest(sha256: str) -> str:
    return f"sha256:{sha256}"


def _write(path: Path, document: object) -> None:
    partial = path.with_name(f"{path.name}.new")
    partial.write_text(json.dumps(document), encoding="utf-8")
    os.replace(partial, path)


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # a journal that cannot be read is no journal
