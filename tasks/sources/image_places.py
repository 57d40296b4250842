"""Where each image that the records name lies: in a folder, or in an archive at some range."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_contracts.artifact import canonical_json
from data_contracts.sources import ImageArchive, ImageFolder, ImagePlace, remote_file
from tasks.artifacts.writer import ArtifactWriter
from tasks.fetching.addresses import local_file, must_be_fetched
from tasks.fetching.kept_files import FetchedFile
from tasks.sources import conversions
from tasks.sources.archives import UnsafeArchive, archive_kind, gunzip_tar, members
from tasks.sources.local_sources import require_archive
from tasks.sources.record_stream import SourceError
from tasks.sources.source_fetcher import Fetcher, file_on_disk
from tasks.storage.addresses import folder_and_name
from tasks.storage.storage import Storage


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
    root, key = folder_and_name(str(local_file(uri) or uri))
    storage = store.elsewhere(root)
    found = storage.describe_one(key)
    if found is None:
        raise SourceError(f"{uri}: no such file; check the source's URI")
    with storage.reader(key) as file:
        if archive_kind(file, uri) == "tar.gz":
            return None
    identity = (uri, str(found.num_bytes), found.version)
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
        UnsafeArchive: if it is damaged, not safe, or has two members for one name.
    """
    prefix = "" if place.folder is None else f"{place.folder}/"
    wanted = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    found: dict[str, str] = {}
    with archive.storage.reader(archive.key) as file:
        for member in members(file, archive.shown):
            name = _match(member.name, prefix, wanted)
            if name is None:
                continue
            if name in found:
                raise UnsafeArchive(
                    f"{archive.shown}: has two members for {name!r}, {member.name!r} the second; "
                    "name the right one's folder by an archive of its own"
                )
            found[name] = f"{uri}{member.where}"
    return found


def _match(member: str, prefix: str, wanted: Mapping[str, str]) -> str | None:
    """The name that a member stands for: its path, or the end of it."""
    if prefix and f"/{member}".rpartition(f"/{prefix}")[1]:
        return wanted.get(f"/{member}".rpartition(f"/{prefix}")[2])
    rest = member
    while rest:
        if rest in wanted:
            return wanted[rest]
        rest = rest.partition("/")[2]
    return None


@dataclass(frozen=True)
class Folder:
    """A folder and what of it the records name."""

    storage: Storage
    found: dict[str, list[Any]]
    """Name -> size and version."""

    @classmethod
    def look(cls, store: Storage, place: ImageFolder, names: Collection[str]) -> "Folder":
        """Find out which images exist, in which version."""
        storage = store.elsewhere(place.uri)
        prefix = "" if place.folder is None else f"{place.folder}/"
        wanted = {storage.key_of(name): name for name in names if name.startswith(prefix)}
        described = storage.describe(wanted)
        found = {wanted[k]: [v.num_bytes, v.version] for k, v in described.items()}
        return cls(storage, dict(sorted(found.items())))

    def uri(self, name: str) -> str:
        """Address of an image."""
        return self.storage.uri(self.storage.key_of(name))

    def read(self, name: str) -> bytes:
        """An image as it is now.

        Raises:
            FileNotFoundError: if it is gone.
        """
        return self.storage.read(self.storage.key_of(name))

    @property
    def identity(self) -> str:
        """Changes when a named image does."""
        return canonical_json([[name, *facts] for name, facts in self.found.items()])


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
