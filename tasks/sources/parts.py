"""A source's documents as local files in one form: LLaVA records, true boxes, converted images.

What is published in another form (Visual-CoT's lines, Parquet with image bytes, a gzipped tar) is
rewritten once, beside the fetched file, and found there the next time.
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from data_contracts.settings_files import parse_lines
from data_contracts.sources import (
    FileAddress,
    FileSource,
    ImageArchive,
    ImageFolder,
    ImagePlace,
    LlavaMixSource,
    ParquetSource,
    RemoteFile,
    VisualCotSource,
    remote_file,
)
from sdrpn_core.source_formats import visual_cot_box, visual_cot_record
from tasks.artifacts.stage import NotMade, StageRun
from tasks.fetching.addresses import (
    downloads_folder,
    local_file,
    matching,
    opener,
    require_space,
)
from tasks.fetching.fetcher import describe, fetch
from tasks.fetching.kept_files import FetchedFile, earlier_copy, kept_file, missing_bytes
from tasks.fetching.partial_file import exclusive
from tasks.fetching.remote import DownloadError
from tasks.sources import conversions
from tasks.sources.archives import archive_kind, gunzip_tar
from tasks.sources.conversions import Conversion
from tasks.sources.mix_boxes import MixBox
from tasks.sources.parquet_images import convert_parquet
from tasks.sources.record_stream import SourceError, read_records
from tasks.storage.digests import digest_file

logger = logging.getLogger(__name__)

_MIB = 1 << 20


@dataclass(frozen=True)
class Documents:
    """What a source consists of, as far as it is needed to know which images it names."""

    records: FetchedFile
    boxes: FetchedFile | None
    places: tuple[ImagePlace, ...]


class Fetcher:
    """Brings a run's files here."""

    def __init__(self, run: StageRun) -> None:
        """Prepare; nothing is fetched yet."""
        self.folder = downloads_folder(run.runtime)
        self._run = run
        self._settings = run.runtime.downloads
        self._open_remote = opener(run.store.storage, self._settings)

    def get(self, address: FileAddress) -> FetchedFile:
        """A file as a local one: where it is if it is on this machine's disk, else fetched.

        Raises:
            DownloadError, SourceError: if it cannot be had.
            NotMade: if the run only looks, and no earlier one fetched it.
        """
        file = remote_file(address)
        path = local_file(file.uri)
        if path is not None:
            return _local(path, file.uri, file.sha256)
        known = kept_file(file, self.folder)
        if known is not None:
            return known
        if self._run.only_looks:
            return self._fetched_before(file)
        try:
            info = describe(file, self._open_remote, self._settings)
        except DownloadError as error:
            copy = earlier_copy(file, self.folder)
            if copy is None:
                raise
            logger.warning("%s; going on with the copy that was fetched before", error)
            return copy
        num_missing = missing_bytes(file, self.folder, info)
        if num_missing:
            require_space(self.folder, num_missing, self._settings)
            logger.info("fetching %s: %s bytes, licence %s", file.uri, info.num_bytes, info.licence)
        with exclusive(self.folder):
            fetched = fetch(
                file, self.folder, self._open_remote, self._settings, self._report(file.uri)
            )
        num_mib = fetched.num_bytes // _MIB
        self._run.on_progress(_part(file.uri), num_mib, num_mib)
        return fetched

    def _fetched_before(self, file: RemoteFile) -> FetchedFile:
        """Whoever only looks has asked the file's server already whether it is still the same."""
        copy = earlier_copy(file, self.folder)
        if copy is None:
            raise NotMade(f"{file.uri}: is still to be fetched")
        return copy

    def matching(self, address: FileAddress) -> tuple[FileAddress, ...]:
        """See ``addresses.matching``."""
        return matching(self._run.store.storage, address)

    def _report(self, uri: str) -> Callable[[int, int | None], None]:
        reported = [-1]

        def on_bytes(num_done: int, num_bytes: int | None) -> None:
            done = num_done // _MIB
            if done > reported[0]:
                reported[0] = done
                total = None if num_bytes is None else num_bytes // _MIB + 1
                self._run.on_progress(_part(uri), done, total)

        return on_bytes

    def converted(
        self,
        sources: tuple[FetchedFile, ...],
        conversion: Conversion,
        convert: Callable[[Path], None],
    ) -> Path:
        """The folder that a conversion filled, now or earlier.

        Args:
            sources: the files it is made of, in their order.
            conversion: which it is.
            convert: fills an empty folder.

        Raises:
            NotMade: if the run only looks, and no earlier one filled it.
        """
        folder = conversion.folder(self.folder, [source.sha256 for source in sources])
        if folder.is_dir():
            return folder
        if self._run.only_looks:
            raise NotMade(f"{folder}: is still to be written")
        made = folder.with_name(f"{folder.name}.partial")
        with exclusive(self.folder):
            if not folder.is_dir():
                num_bytes = sum(source.num_bytes for source in sources)
                require_space(self.folder, num_bytes, self._settings)
                made.mkdir(parents=True, exist_ok=True)
                convert(made)
                os.replace(made, folder)
        return folder


def documents(fetcher: Fetcher, source: FileSource) -> Documents:
    """Fetch and convert what says which images a source has.

    Raises:
        DownloadError, SourceError: if something cannot be had or read.
        ConfigError: if a true box cannot be one.
    """
    match source:
        case LlavaMixSource():
            boxes = None if source.boxes is None else _boxes(fetcher, source.boxes)
            return Documents(fetcher.get(source.records), boxes, image_places(source.images))
        case VisualCotSource():
            return _visual_cot(fetcher, source)
        case ParquetSource():
            return _parquet(fetcher, source)


def _boxes(fetcher: Fetcher, address: FileAddress) -> FetchedFile:
    """True boxes; looked through at once, as nobody uses them before evaluation."""
    file = fetcher.get(address)
    parse_lines(MixBox, file.path.read_bytes(), remote_file(address).uri)
    return file


def image_places(images: str | tuple[ImagePlace, ...]) -> tuple[ImagePlace, ...]:
    """The long form of a source's ``images``."""
    return (ImageFolder(uri=images),) if isinstance(images, str) else images


def plain_archive(fetcher: Fetcher, file: FetchedFile, place: ImageArchive) -> FetchedFile:
    """The archive itself, or a gzipped tar rewritten as a plain one."""
    with file.path.open("rb") as archive:
        if archive_kind(archive, remote_file(place.file).uri) != "tar.gz":
            return file

    def convert(folder: Path) -> None:
        with file.path.open("rb") as packed, (folder / "images.tar").open("wb") as plain:
            gunzip_tar(packed, file.num_bytes, plain, remote_file(place.file).uri)

    return _local(fetcher.converted((file,), conversions.gunzip(), convert) / "images.tar")


def _visual_cot(fetcher: Fetcher, source: VisualCotSource) -> Documents:
    lines = fetcher.get(source.records)
    uri = remote_file(source.records).uri

    def convert(folder: Path) -> None:
        with (
            lines.path.open("rb") as published,
            (folder / "records.jsonl").open("w", encoding="utf-8") as records,
            (folder / "boxes.jsonl").open("w", encoding="utf-8") as boxes,
        ):
            for number, line in enumerate(read_records(_binary(published), uri)):
                record = visual_cot_record(line, number, source.image_folder)
                records.write(f"{json.dumps(record)}\n")
                if box := visual_cot_box(line, record):
                    boxes.write(f"{json.dumps(box)}\n")

    folder = fetcher.converted((lines,), conversions.visual_cot(source), convert)
    return Documents(
        _local(folder / "records.jsonl"),
        _local(folder / "boxes.jsonl"),
        image_places(source.images),
    )


def _parquet(fetcher: Fetcher, source: ParquetSource) -> Documents:
    files = tuple(fetcher.get(found) for given in source.files for found in fetcher.matching(given))
    convert = partial(convert_parquet, [file.path for file in files], source)
    folder = fetcher.converted(files, conversions.parquet(source), convert)
    images = folder / "images.tar"
    archive = ImageArchive(file=RemoteFile(uri=str(images), sha256=digest_file(images)))
    return Documents(_local(folder / "records.jsonl"), None, (archive,))


def _local(path: Path, uri: str | None = None, sha256: str | None = None) -> FetchedFile:
    if not path.is_file():
        raise SourceError(f"{uri or path}: no such file; check the source's URI")
    digest = digest_file(path)
    if sha256 not in (None, digest):
        raise SourceError(f"{uri or path}: SHA-256 is {digest}, {sha256} expected; replace it")
    return FetchedFile(path, path.stat().st_size, digest)


def _binary(file: Any) -> BinaryIO:
    opened: BinaryIO = file
    return opened


def _part(uri: str) -> str:
    """What progress is told of while a file is fetched."""
    return f"MiB of {uri}"
