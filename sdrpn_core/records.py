"""Source records in the format of LLaVA's instruction mix -> questions with stable ids.

Every source record gives at least one row: what cannot be used keeps a row with a status and the
reason. A question's id digests its content (dataset, source id, image bytes, turn, text), never its
position, so ids survive reordering and growing of the source.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from data_contracts.artifact import ID_LENGTH, canonical_json
from data_contracts.configs import RecordsConfig
from data_contracts.enums import RecordStatus
from data_contracts.sources import Selection
from sdrpn_core.source_paths import is_unicode, stays_below

STAGE_VERSION = 2

PROBLEM = "sdrpn_problem"
"""Key of a record that a conversion could not make of its original: why not."""
_MAX_REASON = 5000
"""Characters, more than a path can have; some records hold the image where its path belongs."""
_PLAIN_PATH = re.compile(r"[^/.][^/]*(?:/[^/.][^/]*)*")
"""One that normalising leaves as it is; asked of every record, three times."""
_IMAGE_MARKER = re.compile(r"[ \t]*<image>[ \t]*\n?")
_IDENTITY = itemgetter("dataset", "source_id", "turn", "image_sha256", "question")
"""What of a row its id depends on, beside the record's own content."""

Row = dict[str, Any]


@dataclass(frozen=True)
class SourceFile:
    """A downloaded image."""

    uri: str
    sha256: str
    num_bytes: int
    problem: str | None = None
    """Why it cannot be decoded, if so."""


@dataclass(frozen=True)
class BadRecord:
    """Text in a source that is no record at all."""

    text: str
    reason: str


class _Unusable(Exception):
    """Why a record or a turn cannot be used."""

    def __init__(self, status: RecordStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]}..."


class _Turn(NamedTuple):
    number: int
    question: str
    answers: tuple[str, ...]


LATER_TURN = "later_turn"
"""What is counted of questions that are not their record's first."""


def image_path(record: object) -> str | None:
    """Path of a record's image below the images folder; None if it names none that is usable."""
    try:
        return _image_path(record)
    except _Unusable:
        return None


def build_records(
    records: Iterable[object],
    source: str,
    settings: RecordsConfig,
    files: Mapping[str, SourceFile],
    left_out: Counter[str] | None = None,
) -> list[Row]:
    """Turn source records into rows of ``qa_record.v1``, in their order.

    Args:
        records: parsed JSON, ``{"id", "image", "conversations": [{"from", "value"}, ...]}`` each,
            or ``BadRecord``.
        source: dataset name of records whose image lies in no folder.
        settings: turns to take, kinds.
        files: image path as in the records -> the downloaded file.
        left_out: counts ``LATER_TURN``: what could be asked if ``settings`` took all turns.
    """
    later = Counter[str]() if left_out is None else left_out
    return [row for record in records for row in _rows_of(record, source, settings, files, later)]


def skipped(record: object, selection: Selection, files: Mapping[str, SourceFile]) -> str | None:
    """Why a record is not wanted (``other_folder`` or ``other_part``); None if it is.

    Records without a usable image belong to everything but the held-out part, so that each is
    counted once.
    """
    if selection.folders is None and selection.part == "all":
        return None
    path = image_path(record)
    if path is None:
        return "other_part" if selection.part == "held_out" else None
    if selection.folders is not None and path.partition("/")[0] not in selection.folders:
        return "other_folder"
    if selection.part == "all":
        return None
    image = files.get(path)
    content = path if image is None else image.sha256
    draw = hashlib.sha256(f"{selection.seed}:{content}".encode()).digest()
    is_held_out = int.from_bytes(draw[:8]) < selection.held_out_ratio * 2**64
    return None if is_held_out == (selection.part == "held_out") else "other_part"


def question_id(path: str, row: Mapping[str, Any]) -> str:
    """Id of a question about the image of this path.

    Args:
        path: as ``image_path`` gives it.
        row: of ``qa_record.v1``; its own id is not read.
    """
    return _digest(canonical_json([path, *_IDENTITY(row)]))


def repeated_id(first_id: str, occurrence: int) -> str:
    """Id of a row whose content occurs again; ``occurrence`` counts from 2."""
    return _digest(canonical_json([first_id, occurrence]))


def _rows_of(
    record: object,
    source: str,
    settings: RecordsConfig,
    files: Mapping[str, SourceFile],
    left_out: Counter[str],
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
        folder = path.partition("/")[0] if "/" in path else source
        row["dataset"] = folder
        row["kind"] = settings.datasets.get(folder, settings.default_kind).value
        turns = _turns(record)
    except _Unusable as problem:
        yield _finish(row, _canonical_record(record), problem)
        return
    image = files.get(path)
    if image is not None:
        row |= {"image_uri": image.uri, "image_sha256": image.sha256}
    taken = 1 if settings.turns == "first" else len(turns)
    left_out[LATER_TURN] += sum(_problem(turn, image, path) is None for turn in turns[taken:])
    for turn in turns[:taken]:
        asked = {"turn": turn.number, "question": turn.question, "answers": list(turn.answers)}
        yield _finish({**row, **asked}, path, _problem(turn, image, path))


def _problem(turn: _Turn, image: SourceFile | None, path: str) -> _Unusable | None:
    if image is None:
        return _Unusable(RecordStatus.MISSING_IMAGE, f"no image {path!r} in the images folder")
    if image.problem is not None:
        return _Unusable(RecordStatus.UNREADABLE_IMAGE, f"image {path!r}: {image.problem}")
    if not turn.question:
        return _Unusable(RecordStatus.NO_QUESTION, f"human turn {turn.number} asks nothing")
    return None


def _finish(row: Row, content: str, problem: _Unusable | None) -> Row:
    """Add the id and, for a row that cannot be used, why."""
    row["question_id"] = question_id(content, row)
    if problem is not None:
        row["status"], row["reason"] = problem.status.value, problem.reason
    return row


def _image_path(record: object) -> str:
    if isinstance(record, BadRecord):
        raise _Unusable(RecordStatus.MALFORMED, record.reason)
    if not isinstance(record, dict):
        raise _Unusable(RecordStatus.MALFORMED, f"a {type(record).__name__}, not an object")
    if isinstance(problem := record.get(PROBLEM), str):
        raise _Unusable(RecordStatus.MALFORMED, problem)
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
    path = image if _PLAIN_PATH.fullmatch(image) else str(PurePosixPath(image))
    if not stays_below(image) or path == ".":
        raise _Unusable(
            RecordStatus.MALFORMED,
            f"image {image!r} is not a path below the folder; it is to be relative to the source's "
            "`images` (--images)",
        )
    return path


def _turns(record: object) -> list[_Turn]:
    conversation = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(conversation, list):
        raise _Unusable(RecordStatus.MALFORMED, "conversations is not a list")
    messages = [_message(message) for message in conversation]
    if not messages:
        raise _Unusable(RecordStatus.NO_QUESTION, "no turn is human")
    answers = [*messages[1:], ("", "")]
    turns: list[_Turn] = []
    for (speaker, text), (next_speaker, answer) in zip(messages, answers, strict=True):
        if speaker == "human":
            given = (answer.strip(),) if next_speaker == "gpt" and answer.strip() else ()
            turns.append(_Turn(len(turns), _without_marker(text), given))
    if not turns:
        raise _Unusable(RecordStatus.NO_QUESTION, "no turn is human")
    return turns


def _without_marker(text: str) -> str:
    """A question without the place of its image, which most turns do not have."""
    return (_IMAGE_MARKER.sub(" ", text) if "<image>" in text else text).strip()


def _message(message: object) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise _Unusable(RecordStatus.MALFORMED, "a conversation turn is not an object")
    speaker, text = message.get("from"), message.get("value")
    if not isinstance(speaker, str) or not isinstance(text, str):
        raise _Unusable(RecordStatus.MALFORMED, "a turn lacks 'from' or 'value' text")
    if not is_unicode(text):
        raise _Unusable(RecordStatus.MALFORMED, "a turn's text is not valid Unicode")
    return speaker, text


def _source_id(record: object) -> str:
    given = record.get("id", "") if isinstance(record, dict) else ""
    return str(given).encode("utf-8", "replace").decode()


def _canonical_record(record: object) -> str:
    """Text that identifies a record that could not be read further."""
    if isinstance(record, BadRecord):
        return record.text
    try:
        return canonical_json(record)
    except (TypeError, ValueError):
        return repr(record)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:ID_LENGTH]
