"""How many questions, and of what, a source's records hold: counted where they are here."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.configs import RecordsConfig
from data_contracts.enums import RecordStatus
from data_contracts.sources import (
    BenchmarkSource,
    FileSource,
    LlavaMixSource,
    ParquetSource,
    RemoteFile,
    Selection,
    VisualCotSource,
    remote_file,
)
from sdrpn_core.records import SourceFile, build_records, image_path, skipped
from sdrpn_core.source_formats import visual_cot_record
from tasks.fetching.addresses import local_file
from tasks.fetching.kept_files import earlier_copy
from tasks.planning.files import PlannedFile
from tasks.sources.record_stream import read_mix

READ_BYTES = 32 << 20
"""So much of a source's records is read; it takes about two seconds."""

_ANY_IMAGE = SourceFile(uri="-", sha256="0" * 64, num_bytes=0)


@dataclass(frozen=True)
class Counted:
    """Questions in a source's chosen folders, whichever part of the images is taken."""

    number: int
    is_whole: bool
    """All records were read; else it is what the first of them suggest."""
    num_records: int
    """Of all folders, with or without a question."""
    num_images: int
    """Different ones that records of the chosen folders name."""


def counted_questions(
    source: FileSource | BenchmarkSource,
    settings: RecordsConfig,
    files: Sequence[PlannedFile],
    downloads: Path,
) -> Counted | None:
    """Count what asks something of an image; whether there is such an image is not looked up.

    Args:
        source: whose questions.
        settings: which turns count.
        files: of the source; a mix's records come first.
        downloads: where fetched files are kept.

    Returns:
        None if the records are not on this machine, or cannot be opened (a run will say why), or
        the first of many say nothing of the others.

    Raises:
        SourceError: if what is read of the records is not what a run could read.
    """
    try:
        if isinstance(source, ParquetSource | BenchmarkSource):
            return _rows_of(_here(RemoteFile(uri=file.uri), file, downloads) for file in files)
        path = _here(remote_file(source.records), files[0], downloads)
        return None if path is None else _asked(path, source, settings)
    except (pa.ArrowException, OSError):
        return None


def _here(file: RemoteFile, planned: PlannedFile, downloads: Path) -> Path | None:
    if not planned.is_here:
        return None
    if path := local_file(file.uri):
        return path
    copy = earlier_copy(file, downloads)
    return None if copy is None else copy.path


def _rows_of(paths: Iterable[Path | None]) -> Counted | None:
    """A row is a question."""
    number = 0
    for path in paths:
        if path is None:
            return None
        number += pq.read_metadata(path).num_rows
    return Counted(number, is_whole=True, num_records=number, num_images=number)


def _asked(
    path: Path, source: LlavaMixSource | VisualCotSource, settings: RecordsConfig
) -> Counted | None:
    """Of a mix; what is asked of one image once more counts once, unless repeats are taken."""
    folders = Selection(folders=source.selection.folders)
    num_bytes = path.stat().st_size
    known, images = set[tuple[str, str]](), set[str]()
    num_questions = num_records = 0
    share_read = 1.0
    with path.open("rb") as file:
        for number, given in enumerate(read_mix(file, str(path))):
            num_records += 1
            record = given
            if isinstance(source, VisualCotSource):
                record = visual_cot_record(given, number, source.image_folder)
            if skipped(record, folders, {}) is None:
                images.update(name for name in (image_path(record),) if name is not None)
                asked = list(_questions(record, source.name, settings))
                new = asked if source.selection.repeats else set(asked) - known
                num_questions += len(new)
                known.update(asked)
            # The file is read ahead in chunks, so that a small one may end here too.
            if READ_BYTES < file.tell() < num_bytes:
                share_read = file.tell() / num_bytes
                break
    found = Counted(num_questions, share_read == 1.0, num_records, len(images))
    if found.is_whole:
        return found
    # Folders often follow each other.
    return None if folders.folders or num_questions == 0 else _scaled(found, share_read)


def _scaled(found: Counted, share: float) -> Counted:
    """What such a share of a file's records suggests of all."""
    return Counted(
        round(found.number / share),
        is_whole=False,
        num_records=round(found.num_records / share),
        num_images=round(found.num_images / share),
    )


def _questions(
    record: object, source_name: str, settings: RecordsConfig
) -> Iterator[tuple[str, str]]:
    """(image, question) of every turn that can be asked if the image is there."""
    path = image_path(record)
    files = {} if path is None else {path: _ANY_IMAGE}
    for row in build_records([record], source_name, settings, files):
        if path is not None and row["status"] == RecordStatus.OK.value:
            yield path, row["question"]
