"""What a source consists of, found out before anything of it is copied into the store."""

from dataclasses import dataclass
from typing import Any

from data_contracts.sources import FileSource, ImageArchive, ImageFolder, Selection
from sdrpn_core.records import image_path
from sdrpn_core.source_formats import llava_record
from tasks.artifacts.stage import StageRun
from tasks.fetching.kept_files import FetchedFile
from tasks.sources.access import read_source
from tasks.sources.benchmark_files import DOCUMENTS_NAME
from tasks.sources.downloaded_files import BOXES_NAME, RECORDS_NAME
from tasks.sources.image_places import Archive, Folder, joined_addresses, open_archive
from tasks.sources.local_records import LocalRecords, local_records
from tasks.sources.record_stream import SourceError, read_records
from tasks.sources.source_fetcher import Fetcher
from tasks.storage.addresses import kept_address
from tasks.storage.digests import digest
from tasks.storage.storage import Storage


@dataclass(frozen=True)
class SurveyedSource:
    """A source whose records were read, and whose images were looked for but not read."""

    local: LocalRecords
    num_records: int
    num_chats: int
    """Records in the form of chats."""
    names: tuple[str, ...]
    """Images that the records name, sorted."""
    folders: tuple[Folder, ...]
    archives: tuple[tuple[ImageArchive, Archive], ...]
    copies_images: bool
    identity: dict[str, Any]
    """Changes when what is to be downloaded does."""
    benchmark_rows: FetchedFile | None = None
    """What a public benchmark's rows say beside their questions."""


def survey(run: StageRun, source: FileSource) -> SurveyedSource:
    """Read the records and find out which version of which images there is.

    Raises:
        SourceError: if the records cannot be read, or none of the images is there.
        StoreError: if images that stay where they are lie where no row can say.
        ConfigError: if a true box cannot be one.
        DownloadError: if they cannot be fetched.
    """
    fetcher = Fetcher(run)
    local = local_records(fetcher, source)
    num_records, num_chats, names = _named_images(local.records, source.selection)
    store = run.store.storage
    folders: list[Folder] = []
    archives: list[tuple[ImageArchive, Archive]] = []
    for place in local.places:
        if isinstance(place, ImageFolder):
            folders.append(read_source(place.uri, lambda p=place: Folder.look(store, p, names)))  # type: ignore[misc]
        else:
            archives.append((place, open_archive(fetcher, store, place, source.copy_images)))
    if names and not archives and not any(folder.found for folder in folders):
        raise SourceError(
            f"{joined_addresses(local.places)}: holds none of the {len(names)} images that "
            f"{local.records.path} names (the first is {names[0]!r}); point `images` at the folder "
            "that these paths start from"
        )
    chosen = source.selection.folders
    return SurveyedSource(
        local=local,
        num_records=num_records,
        num_chats=num_chats,
        names=names,
        folders=tuple(folders),
        archives=tuple(archives),
        copies_images=source.copy_images,
        identity={
            "documents": {
                name: file.sha256 for name, file in files_beside_images(local, None).items()
            },
            "folders": None if chosen is None else list(chosen),
            "images": [_digest(folder.identity) for folder in folders],
            "archives": [[place.folder, *archive.identity] for place, archive in archives],
            # Members were once found only by the records' own spelling of accents.
            **({"spelling": "any"} if archives and not all(map(str.isascii, names)) else {}),
            **({"chats": "read"} if num_chats else {}),  # once, they were malformed records
            # Rows name images that stay in place, so where they are is part of the content.
            "in_place": None if source.copy_images else _addresses(folders, archives),
        },
    )


def files_beside_images(
    local: LocalRecords, benchmark_rows: FetchedFile | None
) -> dict[str, FetchedFile]:
    """What a source has beside its images, by the files' names in the table of files."""
    named = {
        RECORDS_NAME: local.records,
        BOXES_NAME: local.boxes,
        DOCUMENTS_NAME: benchmark_rows,
    }
    return {name: file for name, file in named.items() if file is not None}


def _addresses(folders: list[Folder], archives: list[tuple[ImageArchive, Archive]]) -> list[str]:
    roots = [folder.storage.root.rstrip("/") for folder in folders]
    return [kept_address(uri) for uri in (*roots, *(archive.uri for _, archive in archives))]


def _named_images(records: FetchedFile, selection: Selection) -> tuple[int, int, tuple[str, ...]]:
    """Number of records and of chats, and the images that those of the chosen folders name."""
    num_records = num_chats = 0
    names: set[str] = set()
    with Storage(str(records.path.parent)).reader(records.path.name) as file:
        for given in read_records(file, str(records.path)):
            num_records += 1
            record = llava_record(given)
            num_chats += record is not given
            path = image_path(record)
            if path is not None and _is_chosen(path, selection):
                names.add(path)
    return num_records, num_chats, tuple(sorted(names))


def _is_chosen(path: str, selection: Selection) -> bool:
    return selection.folders is None or path.partition("/")[0] in selection.folders


def _digest(text: str) -> str:
    return digest(text.encode("utf-8", "surrogateescape"))
