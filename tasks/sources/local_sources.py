"""What a source names on this machine's disk must be there before a run sets out."""

from collections.abc import Sequence
from urllib.parse import unquote

from data_contracts.sources import (
    FileAddress,
    FileSource,
    ImageArchive,
    ImageFolder,
    ImagePlace,
    LlavaMixSource,
    ParquetSource,
    remote_file,
)
from tasks.fetching.addresses import local_file
from tasks.sources.record_stream import SourceError
from tasks.storage.addresses import kept_address


def require_local(source: FileSource) -> None:
    """Check that what a source names on this machine's disk exists; nothing is opened.

    Raises:
        SourceError: if a file does not, or is a folder, or no folder that images could come from
            does.
        StoreError: if images that stay where they are lie where no row can say.
    """
    if isinstance(source, ParquetSource):
        _require_files(source.files)
        return
    boxes = source.boxes if isinstance(source, LlavaMixSource) else None
    _require_files([file for file in (source.records, boxes) if file is not None])
    places = source.image_places
    for place in places:
        if isinstance(place, ImageArchive):
            require_archive(place)
    _require_a_folder(places)
    if not source.copy_images:
        for place in places:
            if isinstance(place, ImageFolder):
                kept_address(str(local_file(place.uri) or place.uri))


def require_archive(place: ImageArchive) -> None:
    """Check that an archive on this machine's disk exists; it is not opened.

    Raises:
        SourceError: if it does not, or is a folder.
    """
    uri = remote_file(place.file).uri
    path = local_file(uri)
    if path is not None and path.is_dir():
        raise SourceError(
            f"{uri}: is a folder, not an archive; list it as {{type: folder, uri: ...}}"
        )
    _require_files((place.file,))


def _require_files(addresses: Sequence[FileAddress]) -> None:
    for address in addresses:
        uri = remote_file(address).uri
        path = local_file(uri)
        # A pattern's files are listed, and missed, elsewhere.
        if path is not None and path.is_dir():
            raise SourceError(f"{uri}: is a folder; name a file in it")
        if path is not None and "*" not in uri and not path.is_file():
            raise SourceError(f"{uri}: no such file; check the source's URI{_unquoted(uri)}")


def _unquoted(uri: str) -> str:
    """A hint where signs of a name are quoted as in a URL, if such a name is there."""
    name = unquote(uri)
    path = local_file(name)
    if name == uri or path is None or not path.exists():
        return ""
    return f", which is taken as it is: not quoted, {name} is there"


def _require_a_folder(places: Sequence[ImagePlace]) -> None:
    """One of several is enough: a run takes every image from wherever it is."""
    folders = [place.uri for place in places if isinstance(place, ImageFolder)]
    paths = [path for path in map(local_file, folders) if path is not None]
    if len(paths) == len(places) and not any(path.is_dir() for path in paths):
        raise SourceError(
            f"{', '.join(folders)}: no such folder; check `--images`, or the source's `images`"
            f"{_unquoted(folders[0])}"
        )
