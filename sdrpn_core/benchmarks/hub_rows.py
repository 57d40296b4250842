"""Rows of a benchmark's Parquet files -> questions with image bytes, answers and categories."""

import base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from data_contracts.enums import QuestionKind, ScoringMode
from sdrpn_core.benchmarks.aggregates import aggregate
from sdrpn_core.benchmarks.document import UnusableDocument, texts_field
from sdrpn_core.benchmarks.tasks import TaskSpec

_ANSWER_COLUMNS = ("answers", "answer", "label")


@dataclass(frozen=True)
class HubDocument:
    """One row of a benchmark, ready to be asked."""

    question_id: str
    """The benchmark's own id; the row's number where it has none."""
    image: bytes
    """The image file as it is on the hub."""
    question: str
    """As put to the model: options and answer-style suffix included."""
    asked: str
    """The question alone."""
    image_name: str
    """The image's id or file name; empty if the row has none."""
    answers: tuple[str, ...]
    category: str
    kind: QuestionKind
    fields: Mapping[str, Any]
    """What scoring needs of the row."""


def hub_documents(spec: TaskSpec, rows: Iterable[Mapping[str, Any]]) -> Iterator[HubDocument]:
    """Read rows as the hub has them.

    Args:
        spec: the benchmark.
        rows: of a whole split, one dict a row; ``image`` as ``{"bytes", "path"}``, bytes or base64
            text.

    Raises:
        UnusableDocument: naming the row and the column that is not as it should be.
    """
    for number, row in enumerate(rows):
        try:
            yield _document(spec, row, number)
        except UnusableDocument as error:
            raise UnusableDocument(f"{spec.task.value} row {number}: {error}") from error


def _document(spec: TaskSpec, row: Mapping[str, Any], number: int) -> HubDocument:
    there = [name for name in _ANSWER_COLUMNS if name in row]
    filled = [name for name in there if row[name] is not None]
    column = (filled or there or ["answer"])[0]
    own_id = None if spec.id_column is None else row.get(spec.id_column)
    document = HubDocument(
        question_id=str(number if own_id is None else own_id),
        image=image_bytes(row),
        question=spec.prompt(row),
        asked=str(row.get("question") or row.get("text") or "").partition("(A)")[0],
        image_name=_image_name(row),
        answers=tuple(dict.fromkeys(texts_field(row, column))),
        category=_category(spec, row),
        kind=spec.kind,
        fields={name: row[name] for name in spec.columns if name in row},
    )
    _require_scorable(spec, document)
    return document


def _require_scorable(spec: TaskSpec, document: HubDocument) -> None:
    """And counted, whatever is answered to it; else it would show only after training."""
    row = {"answers": list(document.answers), **document.fields}
    for mode in ScoringMode:
        aggregate(spec.rule, [("", row)], mode)


def _category(spec: TaskSpec, row: Mapping[str, Any]) -> str:
    """A row that is in several categories gets a joint one; one that is in none an empty one."""
    if spec.category_column is None or not row.get(spec.category_column):
        return ""
    return ", ".join(texts_field(row, spec.category_column))


def _image_name(row: Mapping[str, Any]) -> str:
    image = row.get("image")
    path = image.get("path") if isinstance(image, Mapping) else None
    return str(row.get("image_id") or path or "")


def image_bytes(row: Mapping[str, Any]) -> bytes:
    """The image file in a row.

    Raises:
        UnusableDocument: if there is none.
    """
    image = row.get("image")
    if isinstance(image, Mapping):
        image = image.get("bytes")
    if isinstance(image, str):
        try:
            image = base64.b64decode("".join(image.split()), validate=True)
        except ValueError as error:  # binascii's own, or of signs beyond ASCII
            raise UnusableDocument(f"column 'image' is not base64 ({error})") from error
    if not isinstance(image, bytes) or not image:
        raise UnusableDocument("column 'image' holds no image bytes; was it exported without them?")
    return image


def split_files(spec: TaskSpec, names: Iterable[str]) -> list[str]:
    """Those of a data set's files that hold the benchmark's split, in order.

    Args:
        spec: the benchmark.
        names: paths below the data set's folder, or below the configuration's.
    """
    parquet = [PurePosixPath(name) for name in names if name.endswith(".parquet")]
    found = [path for path in parquet if _is_of_split(path.stem, spec.file_stems)]
    in_folder = [path for path in found if spec.folder in path.parent.parts]
    default = [path for path in found if path.parent.parts in {(), ("data",)}]
    return sorted(map(str, in_folder or default))


def _is_of_split(stem: str, file_stems: tuple[str, ...]) -> bool:
    return any(stem == split or stem.startswith(f"{split}-") for split in file_stems)
