"""Where each image that the records name lies: in a folder, or in an archive at some range."""

import logging
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_contracts.addresses import concealed
from data_contracts.artifact import canonical_json
from data_contracts.sources import ImageArchive, ImageFolder, ImagePlace, remote_file
from sdrpn_core.source_paths import is_unicode
from tasks.artifacts.writer import ArtifactWriter
from tasks.fetching.addresses import local_file, must_be_fetched
from tasks.fetching.kept_files import FetchedFile
from tasks.sources import conversions
from tasks.sources.archives import UnsafeArchive, archive_kind, gunzip_tar, members
from tasks.sources.local_sources import require_archive
from tasks.sources.record_stream import SourceError
from tasks.sources.source_fetcher import Fetcher, file_on_disk
from tasks.storage.addresses import folder_and_name
from tasks.storage.byte_ranges import MAX_MEMBER_BYTES
from tasks.storage.storage import Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """An archive that can be read in ranges."""

    uri: str
    """Where its bytes are read."""
    shown: str
    """Its published address, for messages."""
    storage: Storage
    key: str
    identity: tuple[str, ...]
    """Changes when the archive does."""
    local: FetchedFile | None
    """Its local file, if it is one or was fetched."""
    is_ours: bool = False
    """The local file is our own copy, which nobody edits."""


def open_archive(fetcher: Fetcher, store: Storage, place: ImageArchive, copy: bool) -> Archive:
    """Make an archive readable in ranges: in place, or fetched (and gunzipped) first.

    Args:
        fetcher: brings it here if need be.
        store: its options apply to addresses of its scheme.
        place: the archive.
        copy: it is to go into the store, so that a local file is needed.

    Raises:
        SourceError: if it does not exist, or is a folder or no archive.
        DownloadError: if it cannot be fetched.
    """
    require_archive(place)
    file = remote_file(place.file)
    path = local_file(file.uri)
    # A digest is checked by reading the whole file; without one, size and age tell versions apart.
    is_trusted = path is None or file.sha256 is None
    if not must_be_fetched(file.uri) and not copy and is_trusted:
        found = _in_place(store, file.uri)
        if found is not None:
            return found
    fetched = fetcher.get(place.file)
    plain = _plain_archive(fetcher, fetched, place)
    return Archive(
        uri=str(plain.path),
        shown=file.uri,
        storage=Storage(str(plain.path.parent)),
        key=plain.path.name,
        identity=(fetched.sha256,),
        local=plain,
        is_ours=path is None or plain is not fetched,
    )


def _in_place(store: Storage, uri: str) -> Archive | None:
    """The archive where it lies; None if it has no random access."""
    address = str(local_file(uri) or uri)
    root, key = folder_and_name(address)
    storage = store.elsewhere(root)
    found = storage.describe_one(key)
    if found is None:
        raise SourceError(f"{uri}: no such file; check the source's URI")
    with storage.reader(key) as file:
        if archive_kind(file, uri) == "tar.gz":
            return None
    named = address if ".." in uri.split("/") else uri
    identity = (named, str(found.num_bytes), found.version)
    return Archive(storage.uri(key), uri, storage, key, identity, None)


def _plain_archive(fetcher: Fetcher, file: FetchedFile, place: ImageArchive) -> FetchedFile:
    """The archive itself, or a gzipped tar rewritten as a plain one."""
    with file.path.open("rb") as archive:
        if archive_kind(archive, remote_file(place.file).uri) != "tar.gz":
            return file

    def convert(folder: Path) -> None:
        with file.path.open("rb") as packed, (folder / "images.tar").open("wb") as plain:
            gunzip_tar(packed, file.num_bytes, plain, remote_file(place.file).uri)

    return file_on_disk(fetcher.converted((file,), conversions.gunzip(), convert) / "images.tar")


def archive_addresses(
    archive: Archive, place: ImageArchive, names: Collection[str], uri: str
) -> dict[str, str]:
    """Address of each named image that the archive has.

    Args:
        archive: where to look.
        place: which names it serves.
        names: image paths as in the records.
        uri: what the addresses are to start with.

    Raises:
        UnsafeArchive: if it is damaged, not safe, or has two members for one name that fit it
            equally well, or one whose own name is no Unicode.
    """
    spellings = _spellings(place, names)
    found: dict[str, _Candidate] = {}
    odd: list[str] = []
    with archive.storage.reader(archive.key) as file:
        for member in members(file, archive.shown):
            if not is_unicode(member.name):
                odd.append(member.name)
            for name, rank in _fits(member.name, spellings):
                best = found.get(name)
                if best is None or rank < best.rank:
                    found[name] = _Candidate(rank, member.name, f"{uri}{member.where}")
                elif rank == best.rank and best.rival is None:
                    found[name] = best._replace(rival=member.name)
    for name, best in found.items():
        _check_choice(archive, name, best)
    if odd and len(found) < len(spellings[0].wanted):
        logger.warning(
            "%s: the names of %d members are not UTF-8, so that no record can name them; if images "
            "are missing, pack the archive again; the first: %r",
            concealed(archive.shown),
            len(odd),
            odd[0],
        )
    return {name: best.address for name, best in found.items()}


class _Candidate(NamedTuple):
    """The member that fits a name best so far."""

    rank: int
    """How well; 0 is best."""
    member: str
    address: str
    rival: str | None = None
    """Another member that fits as well."""


def _check_choice(archive: Archive, name: str, chosen: _Candidate) -> None:
    if chosen.rival is not None:
        raise UnsafeArchive(
            f"{archive.shown}: has two members for {name!r}, {chosen.rival!r} the second; "
            "name the right one's folder by an archive of its own"
        )
    if not is_unicode(chosen.member):
        raise UnsafeArchive(
            f"{archive.shown}: member {chosen.member!r}, which is for {name!r}, has a name that is "
            "not valid Unicode; pack the archive again with names in UTF-8"
        )


class _Spelling(NamedTuple):
    """What is wanted of an archive, in one spelling of its names."""

    prefix: str
    wanted: dict[str, str]
    """Path below the place's folder -> name as in the records."""

    def by_whole_path(self, member: str) -> str | None:
        """The name that a member's path is, with the place's folder or without."""
        below = self.wanted.get(member.removeprefix(self.prefix))
        return self.wanted.get(member) if below is None else below

    def by_end(self, member: str) -> str | None:
        """The name that a member's path ends in."""
        if self.prefix and f"/{member}".rpartition(f"/{self.prefix}")[1]:
            return self.wanted.get(f"/{member}".rpartition(f"/{self.prefix}")[2])
        rest = member
        while rest:
            if rest in self.wanted:
                return self.wanted[rest]
            rest = rest.partition("/")[2]
        return None


def _spellings(place: ImageArchive, names: Collection[str]) -> tuple[_Spelling, _Spelling]:
    """The names as they are written, and in Unicode's composed form."""
    prefix = "" if place.folder is None else f"{place.folder}/"
    wanted = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    composed = {_composed(path): name for path, name in wanted.items() if not name.isascii()}
    return _Spelling(prefix, wanted), _Spelling(_composed(prefix), composed)


def _fits(member: str, spellings: tuple[_Spelling, _Spelling]) -> Iterator[tuple[str, int]]:
    """Names that a member may stand for, the best first, and how well it fits them: 0 is best.

    Archives made on macOS spell accents as characters of their own, which look the same in records.
    """
    written, composed = spellings
    yield from _fits_in(written, member, 0)
    if composed.wanted and not member.isascii():
        yield from _fits_in(composed, _composed(member), 2)


def _fits_in(spelling: _Spelling, member: str, rank: int) -> Iterator[tuple[str, int]]:
    for more, name in enumerate((spelling.by_whole_path(member), spelling.by_end(member))):
        if name is not None:
            yield name, rank + more


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class Folder:
    """A folder and what of it the records name."""

    storage: Storage
    found: dict[str, list[Any]]
    """Name -> size and version."""
    spelt: dict[str, str] = field(default_factory=dict)
    """Name in the records -> that of the file, where its accents are spelt otherwise."""

    @classmethod
    def look(cls, store: Storage, place: ImageFolder, names: Collection[str]) -> "Folder":
        """Find out which images exist, in which version."""
        storage = store.elsewhere(place.uri)
        prefix = "" if place.folder is None else f"{place.folder}/"
        wanted = {name for name in names if name.startswith(prefix)}
        found = _described(storage, wanted)
        others = _other_forms(wanted - found.keys())
        spelt: dict[str, str] = {}
        for other, facts in _described(storage, others).items():
            spelt[others[other]] = other
            found[others[other]] = facts
        return cls(storage, dict(sorted(found.items())), spelt)

    def uri(self, name: str) -> str:
        """Address of an image that was found."""
        return self.storage.uri(self._key(name))

    def read(self, name: str) -> bytes:
        """An image as it is now.

        Raises:
            FileNotFoundError: if it is gone.
        """
        return self.storage.read(self._key(name))

    @property
    def identity(self) -> str:
        """Changes when a named image does."""
        found = [[name, *facts] for name, facts in self.found.items()]
        return canonical_json([*found, *(list(pair) for pair in sorted(self.spelt.items()))])

    def _key(self, name: str) -> str:
        return self.storage.key_of(self.spelt.get(name, name))


def _described(storage: Storage, names: Collection[str]) -> dict[str, list[Any]]:
    """Size and version of those files that exist, by name."""
    keys = {storage.key_of(name): name for name in names}
    described = storage.describe(keys, MAX_MEMBER_BYTES) if keys else {}
    return {keys[key]: [facts.num_bytes, facts.version] for key, facts in described.items()}


def _other_forms(names: Iterable[str]) -> dict[str, str]:
    """Composed and decomposed form of names, where they differ -> the names."""
    return {
        other: name
        for name in sorted(names)
        for other in (unicodedata.normalize("NFD", name), _composed(name))
        if other != name
    }


def joined_addresses(places: Collection[ImagePlace]) -> str:
    """Addresses of the places with commas between them, for a message."""
    return ", ".join(
        place.uri if isinstance(place, ImageFolder) else remote_file(place.file).uri
        for place in places
    )


def keep_archive(writer: ArtifactWriter, archive: Archive) -> str:
    """Put an archive into the store; returns its address there."""
    assert archive.local is not None
    suffix = Path(archive.local.path.name).suffix
    return writer.put_blob_file(
        archive.local.path, archive.local.sha256, suffix, may_link=archive.is_ours
    )
