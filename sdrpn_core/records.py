"""Source records in the format of LLaVA's instruction mix -> questions with stable ids.

Every source record gives at least one row: what cannot be used keeps a row with a status and the
reason. A question's id digests its content (dataset, source id, image bytes, turn, text), never its
position, so ids survive reordering and growing of the source.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from data_contracts.artifact import ID_LENGTH, canonical_json
from data_contracts.configs import RecordsConfig
from data_contracts.enums import RecordStatus

STAGE_VERSION = 1

_IMAGE_MARKER = re.compile(r"[ \t]*<image>[ \t]*\n?")
_OUTSIDE = re.compile(r"^/|^[A-Za-z]:|://|\\|(^|/)\.\.(/|$)|\0")

Row = dict[str, Any]


@dataclass(frozen=True)
class SourceFile:
    """A downloaded image."""

    uri: str
    sha256: str
    num_bytes: int


class _Unusable(Exception):
    """Why a record or a turn cannot be used."""

    def __init__(self, status: RecordStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class _Turn:
    index: int
    question: str
    answers: tuple[str, ...]


def image_path(record: object) -> str | None:
    """Path of a record's image below the images folder; None if it names none that is usable."""
    try:
        return _image_path(record)
    except _Unusable:
        return None


def build_records(
    records: Sequence[object],
    source: str,
    settings: RecordsConfig,
    files: Mapping[str, SourceFile],
) -> list[Row]:
    """Turn source records into rows of ``qa_record.v1``, ordered by question id.

    Args:
        records: parsed JSON, ``{"id", "image", "conversations": [{"from", "value"}, ...]}`` each.
        source: dataset name of records whose image lies in no folder.
        settings: turns to take, kinds, size of the subset.
        files: image path as in the records -> the downloaded file.
    """
    rows = [row for record in records for row in _rows_of(record, source, settings, files)]
    _settle_duplicates(rows)
    rows.sort(key=lambda row: str(row["question_id"]))
    return rows if settings.max_records is None else _subset(rows, settings.max_records)


def _rows_of(
    record: object, source: str, settings: RecordsConfig, files: Mapping[str, SourceFile]
) -> Iterator[Row]:
    row: Row = {
        "dataset": source,
        "source_id": _source_id(record),
        "turn": 0,
        "kind": settings.default_kind.value,
        "image_uri": None,
        "image_sha256": None,
        "question": "",
        "answers": [],
        "status": RecordStatus.OK.value,
        "reason": "",
    }
    try:
        path = _image_path(record)
        folder = PurePosixPath(path).parts[0] if "/" in path else source
        row["dataset"] = folder
        row["kind"] = settings.datasets.get(folder, settings.default_kind).value
        turns = _turns(record)
    except _Unusable as problem:
        yield _finish(row, _canonical_record(record), problem)
        return
    image = files.get(path)
    if image is not None:
        row |= {"image_uri": image.uri, "image_sha256": image.sha256}
    for turn in turns[:1] if settings.turns == "first" else turns:
        asked = {"turn": turn.index, "question": turn.question, "answers": list(turn.answers)}
        yield _finish(row | asked, path, _problem(turn, image, path))


def _problem(turn: _Turn, image: SourceFile | None, path: str) -> _Unusable | None:
    if image is None:
        return _Unusable(RecordStatus.MISSING_IMAGE, f"no image {path!r} in the images folder")
    if image.num_bytes == 0:
        return _Unusable(RecordStatus.UNREADABLE_IMAGE, f"image {path!r} is empty (0 bytes)")
    if not turn.question:
        return _Unusable(RecordStatus.NO_QUESTION, f"human turn {turn.index} asks nothing")
    return None


def _finish(row: Row, content: str, problem: _Unusable | None) -> Row:
    """Add the id and, for a row that cannot be used, why."""
    named = ("dataset", "source_id", "turn", "image_sha256", "question")
    identity = canonical_json([content, *(row[name] for name in named)])
    outcome = {} if problem is None else {"status": problem.status.value, "reason": problem.reason}
    return {"question_id": _digest(identity), **row, **outcome}


def _image_path(record: object) -> str:
    if not isinstance(record, dict):
        raise _Unusable(RecordStatus.MALFORMED, f"a {type(record).__name__}, not an object")
    image = record.get("image")
    if image is None or image == []:
        raise _Unusable(RecordStatus.TEXT_ONLY, "the record has no image")
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if isinstance(image, list):
        raise _Unusable(RecordStatus.MALFORMED, f"{len(image)} images; only one is supported")
    if not isinstance(image, str) or not image:
        raise _Unusable(RecordStatus.MALFORMED, f"image is {image!r}, not a path")
    # A path that leaves the images folder would read files that the source does not own.
    if _OUTSIDE.search(image) or not _is_unicode(image):
        raise _Unusable(RecordStatus.MALFORMED, f"image {image!r} is not a path below the folder")
    return str(PurePosixPath(image))


def _turns(record: object) -> list[_Turn]:
    conversation = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(conversation, list):
        raise _Unusable(RecordStatus.MALFORMED, "conversations is not a list")
    messages = [_message(message) for message in conversation]
    answers = [*messages[1:], ("", "")]
    turns: list[_Turn] = []
    for (speaker, text), (next_speaker, answer) in zip(messages, answers, strict=True):
        if speaker == "human":
            given = (answer.strip(),) if next_speaker == "gpt" and answer.strip() else ()
            turns.append(_Turn(len(turns), _IMAGE_MARKER.sub(" ", text).strip(), given))
    if not turns:
        raise _Unusable(RecordStatus.NO_QUESTION, "no turn is human")
    return turns


def _message(message: object) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise _Unusable(RecordStatus.MALFORMED, "a conversation turn is not an object")
    speaker, text = message.get("from"), message.get("value")
    if not isinstance(speaker, str) or not isinstance(text, str):
        raise _Unusable(RecordStatus.MALFORMED, "a turn lacks 'from' or 'value' text")
    if not _is_unicode(text):
        raise _Unusable(RecordStatus.MALFORMED, "a turn's text is not valid Unicode")
    return speaker, text


def _source_id(record: object) -> str:
    given = record.get("id", "") if isinstance(record, dict) else ""
    return str(given).encode("utf-8", "replace").decode()


def _is_unicode(text: str) -> bool:
    """JSON escapes may spell lone surrogates, which no UTF-8 file can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _settle_duplicates(rows: list[Row]) -> None:
    """Give repeated rows ids of their own; a repeated question is asked once."""
    seen: Counter[str] = Counter()
    for row in rows:
        first_id = row["question_id"]
        seen[first_id] += 1
        if seen[first_id] > 1:
            row["question_id"] = _digest(canonical_json([first_id, seen[first_id]]))
            if row["status"] == RecordStatus.OK.value:
                row["status"] = RecordStatus.DUPLICATE.value
                row["reason"] = f"same image and question as {first_id}"


def _subset(rows: list[Row], max_records: int) -> list[Row]:
    """Usable rows with the lowest ids (a digest, so a fair draw) and all that say what is wrong."""
    num_usable = 0
    kept = []
    for row in rows:
        if row["status"] == RecordStatus.OK.value:
            num_usable += 1
            if num_usable > max_records:
                continue
        kept.append(row)
    return kept


def _canonical_record(record: object) -> str:
    """Text that identifies a record that could not be read further."""
    try:
        return canonical_json(record)
    except (TypeError, ValueError):
        return repr(record)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:ID_LENGTH]
