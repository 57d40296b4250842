"""A source's records and true boxes as local files in one form, and where its images are.

What is published in another form (Visual-CoT's lines, Parquet with image bytes) is rewritten once,
beside the fetched file, and found there the next time.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from data_contracts.settings_files import parse_lines
from data_contracts.sources import (
    FileAddress,
    FileSource,
    ImageArchive,
    ImagePlace,
    LlavaMixSource,
    ParquetSource,
    RemoteFile,
    VisualCotSource,
    remote_file,
)
from sdrpn_core.source_formats import visual_cot_box, visual_cot_record
from tasks.fetching.kept_files import FetchedFile
from tasks.sources import conversions
from tasks.sources.mix_boxes import MixBox
from tasks.sources.parquet_images import convert_parquet
from tasks.sources.record_stream import read_records
from tasks.sources.source_fetcher import Fetcher, file_on_disk
from tasks.storage.digests import digest_file


@dataclass(frozen=True)
class LocalRecords:
    """A source's records and what lies beside them: enough to know which images it names."""

    records: FetchedFile
    boxes: FetchedFile | None
    places: tuple[ImagePlace, ...]


def local_records(fetcher: Fetcher, source: FileSource) -> LocalRecords:
    """Fetch and convert what says which images a source has.

    Raises:
        DownloadError, SourceError: if something cannot be had or read.
        ConfigError: if a true box cannot be one.
    """
    match source:
        case LlavaMixSource():
            boxes = None if source.boxes is None else _boxes(fetcher, source.boxes)
            return LocalRecords(fetcher.get(source.records), boxes, source.image_places)
        case VisualCotSource():
            return _visual_cot(fetcher, source)
        case ParquetSource():
            return _parquet(fetcher, source)


def _boxes(fetcher: Fetcher, address: FileAddress) -> FetchedFile:
    """True boxes; looked through at once, as nobody uses them before evaluation."""
    file = fetcher.get(address)
    parse_lines(MixBox, file.path.read_bytes(), remote_file(address).uri)
    return file


def _visual_cot(fetcher: Fetcher, source: VisualCotSource) -> LocalRecords:
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
    return LocalRecords(
        file_on_disk(folder / "records.jsonl"),
        file_on_disk(folder / "boxes.jsonl"),
        source.image_places,
    )


def _parquet(fetcher: Fetcher, source: ParquetSource) -> LocalRecords:
    files = tuple(fetcher.get(found) for given in source.files for found in fetcher.matching(given))
    convert = partial(convert_parquet, [file.path for file in files], source)
    folder = fetcher.converted(files, conversions.parquet(source), convert)
    images = folder / "images.tar"
    archive = ImageArchive(file=RemoteFile(uri=str(images), sha256=digest_file(images)))
    return LocalRecords(file_on_disk(folder / "records.jsonl"), None, (archive,))


def _binary(file: Any) -> BinaryIO:
    opened: BinaryIO = file
    return opened
