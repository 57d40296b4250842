"""Parquet rows with image bytes -> records and one tar of images, row group by row group."""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.errors import one_line
from data_contracts.sources import ParquetSource
from sdrpn_core.records import PROBLEM
from sdrpn_core.source_formats import mix_record
from tasks.sources.archives import add_member
from tasks.sources.record_stream import SourceError
from tasks.storage.digests import digest

_NO_VALUE = (ValueError, OverflowError, KeyError)
_ROWS_AT_ONCE = 8
"""Few: one image of 30 megabytes in a dictionary is as many times that as rows name it."""


def convert_parquet(files: Sequence[Path], source: ParquetSource, folder: Path) -> None:
    """Write ``records.jsonl`` and ``images.tar``; identical images are kept once.

    Raises:
        SourceError: if a file is no Parquet or lacks a column, or the disk is full.
    """
    try:
        _convert(files, source, folder)
    except OSError as error:  # of writing; those of reading are explained where they happen
        raise SourceError(
            f"{folder}: cannot be written ({error}); make room, or set downloads.folder to "
            "another disk"
        ) from error


def _convert(files: Sequence[Path], source: ParquetSource, folder: Path) -> None:
    seen: set[str] = set()
    with (
        (folder / "records.jsonl").open("w", encoding="utf-8") as records,
        tarfile.open(folder / "images.tar", "w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for row in _rows(files, source):
            try:
                _require_values(row)
                data = _image_bytes(row[source.image_column])
                path = None
                if data is not None:
                    # Named by content, so that ids do not depend on the row's position.
                    path = f"{source.name}/{digest(data)[:32]}"
                line = json.dumps(_record(row, path, source))
            except _Unusable as problem:
                line = json.dumps(_reject(row, str(problem), source))
            else:
                if data is not None and path is not None and path not in seen:
                    seen.add(path)
                    add_member(archive, path, len(data), io.BytesIO(data))
            records.write(f"{line}\n")


class _Unusable(Exception):
    """Why a row cannot be used."""


def _require_values(row: Mapping[str, Any]) -> None:
    for name, value in row.items():
        if isinstance(value, _NoValue):
            raise _Unusable(f"column {name!r} cannot be read ({value.reason})")


def _record(row: Mapping[str, Any], path: str | None, source: ParquetSource) -> dict[str, Any]:
    answers = next((row[name] for name in source.answer_columns if name in row), None)
    question = row[source.question_column]
    if question is not None and not isinstance(question, str):
        kind = type(question).__name__
        raise _Unusable(f"column {source.question_column!r} holds {kind}, not text")
    return mix_record(_given_id(row, source), path, question, answers)


def _reject(row: Mapping[str, Any], problem: str, source: ParquetSource) -> dict[str, Any]:
    # All of the row decides its id, as in other records that cannot be read.
    content = digest(repr(sorted(row.items())).encode("utf-8", "replace"))
    return {"id": _given_id(row, source), PROBLEM: problem, "row": content}


def _given_id(row: Mapping[str, Any], source: ParquetSource) -> str:
    return "" if source.id_column is None else str(row[source.id_column])


def _rows(files: Sequence[Path], source: ParquetSource) -> Iterator[dict[str, Any]]:
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                columns = _columns(file.schema_arrow.names, path, source)
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                    yield from _plain_rows(batch)
        except (ValueError, pa.ArrowException, OSError) as error:  # names of columns may be no text
            reason = one_line(error)
            raise SourceError(
                f"{path}: is no whole Parquet file ({reason}); get it again"
            ) from error


@dataclass(frozen=True)
class _NoValue:
    """A cell that Arrow cannot give: text that is not UTF-8, a date beyond all calendars or of a
    time zone that there is not."""

    reason: str


def _plain_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    try:
        yield from batch.to_pylist()
    except _NO_VALUE:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        for index in range(batch.num_rows):
            yield {name: _cell(column[index]) for name, column in columns.items()}


def _cell(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except _NO_VALUE as error:
        return _NoValue(one_line(error))


def _columns(names: Sequence[str], path: Path, source: ParquetSource) -> list[str]:
    needed = [source.image_column, source.question_column]
    needed += [] if source.id_column is None else [source.id_column]
    if missing := [name for name in needed if name not in names]:
        raise SourceError(
            f"{path}: has no column {missing[0]!r}, only {', '.join(names)}; name the columns in "
            "the source"
        )
    return needed + [name for name in source.answer_columns if name in names]


def _image_bytes(value: object) -> bytes | None:
    """The image's file; None of a row that has no image.

    Raises:
        _Unusable: if there is not one image, or not in this file.
    """
    if isinstance(value, list):
        if len(value) > 1:
            raise _Unusable(f"{len(value)} images; only one is supported")
        return _image_bytes(value[0]) if value else None
    if isinstance(value, Mapping):
        data = value.get("bytes")
        if data is None and any(part is not None for part in value.values()):
            raise _Unusable("image bytes are not in the file")
        return _image_bytes(data)
    if value is None or isinstance(value, bytes):
        return value
    raise _Unusable(
        f"image bytes are not in the file (the image is of type {type(value).__name__})"
    )
