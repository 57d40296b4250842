"""How many questions the records of a source hold, counted where they are on this machine."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.configs import RecordsConfig
from data_contracts.enums import RecordStatus
from data_contracts.sources import (
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


def counted_questions(
    source: FileSource, settings: RecordsConfig, files: Sequence[PlannedFile], downloads: Path
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
        if isinstance(source, ParquetSource):
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
    return Counted(number, is_whole=True)


def _asked(
    path: Path, source: LlavaMixSource | VisualCotSource, settings: RecordsConfig
) -> Counted | None:
    """Of a mix; what is asked of one image once more counts once, unless repeats are taken."""
    folders = Selection(folders=source.selection.folders)
    num_bytes = path.stat().st_size
    number_found, known = 0, set[tuple[str, str]]()
    with path.open("rb") as file:
        for number, given in enumerate(read_mix(file, str(path))):
            record = given
            if isinstance(source, VisualCotSource):
                record = visual_cot_record(given, number, source.image_folder)
            if skipped(record, folders, {}) is None:
                asked = list(_questions(record, source.name, settings))
                new = asked if source.selection.repeats else set(asked) - known
                number_found += len(new)
                known.update(asked)
            # The file is read ahead in chunks, so that a small one may end here too.
            if READ_BYTES < file.tell() < num_bytes:
                return _suggested(number_found, num_bytes / file.tell(), folders)
    return Counted(number_found, is_whole=True)


def _suggested(number: int, factor: float, folders: Selection) -> Counted | None:
    """Of a file whose first records have ``number`` questions; folders often follow each other."""
    if folders.folders or number == 0:
        return None
    return Counted(round(number * factor), is_whole=False)


def _questions(
    record: object, source_name: str, settings: RecordsConfig
) -> Iterator[tuple[str, str]]:
    """(image, question) of every turn that can be asked if the image is there."""
    path = image_path(record)
    files = {} if path is None else {path: _ANY_IMAGE}
    for row in build_records([record], source_name, settings, files):
        if path is not None and row["status"] == RecordStatus.OK.value:
            yield path, row["question"]
