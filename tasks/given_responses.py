"""Extraction from the data set's own answers: questions gathered into conversations, then read.

The turns of a conversation are those of the questions artifact: all of them with
``records.turns: all``, and fewer where ``records.max_records`` draws questions by chance. Which
record a turn is of is not in the artifact: a column for it would make all questions anew, and all
that was made of them. Turns of one id, image and kind are taken for one record's, unless a turn
number among them has two questions, or a draw has left questions out. Then several records may
share all that, as COCO's do in LLaVA's mix, and each turn is asked on its own: without those before
it, but never after another record's.

Questions are in the order of their ids, a conversation's turns anywhere among them. Each process
sorts them once, on disk; then a share is read without the others, and memory holds one share.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby, repeat

import polars as pl

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import ExtractionConfig, ModelConfig
from data_contracts.enums import QuestionKind, RecordStatus
from data_contracts.registry import SchemaId
from sdrpn_core.extraction.conversation_layout import Conversation, Turn
from sdrpn_core.extraction.generated_answers import ExtractedAttention
from sdrpn_core.extraction.teacher_forcing import extract_from_answers
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.temporary_database import TemporaryDatabase
from tasks.artifacts.device_memory import BatchSize
from tasks.artifacts.frame_codec import decode_frame
from tasks.artifacts.row_ranges import shard_range
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.attention_rows import attention_rows
from tasks.models import adapter_for_labels
from tasks.opened_images import Row, Turns
from tasks.shard_statistics import is_drawn

_NAMES = ("dataset", "source_id", "image_uri", "kind", "turn", "question_id")
_GIVEN = "dataset, source_id, image_uri, kind"
_TABLES = """
CREATE TABLE question (
    dataset TEXT, source_id TEXT, image_uri TEXT, kind INTEGER, turn INTEGER,
    question_id TEXT, asked INTEGER, record TEXT
);
CREATE TABLE turn (conversation_start INTEGER, is_mixed INTEGER, question INTEGER);
"""
_ADD = "INSERT INTO question VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
# Questions that cannot be asked have no record here, but tell that a turn number is another's too.
# Where all usable turns have one number, each is a conversation anyway.
_MIXED = f"""
CREATE TABLE mixed (
    dataset TEXT, source_id TEXT, image_uri TEXT, kind INTEGER, PRIMARY KEY ({_GIVEN})
) WITHOUT ROWID;
"""
_FIND_MIXED = f"""
INSERT INTO mixed
SELECT {_GIVEN}
FROM (
    SELECT
        {_GIVEN}, count(record) AS num_usable,
        count(record) > 1 OR count(DISTINCT asked) > 1 AS is_repeated
    FROM question
    WHERE image_uri IS NOT NULL
    GROUP BY {_GIVEN}, turn
)
GROUP BY {_GIVEN}
HAVING (max(is_repeated) OR ?) AND sum(num_usable > 0) > 1
"""
# Numbers are sorted, records stay where they are. Where records share an id and an image, which
# share a turn lies in is still what it was before such turns were asked on their own.
_SORT = f"""
INSERT INTO turn
SELECT rank() OVER (ORDER BY {_GIVEN}, occurrence) - 1, is_mixed, number
FROM (
    SELECT
        {_GIVEN}, turn, question.rowid AS number, mixed.kind IS NOT NULL AS is_mixed,
        row_number() OVER (PARTITION BY {_GIVEN}, turn ORDER BY question_id) AS occurrence
    FROM question LEFT JOIN mixed USING ({_GIVEN})
    WHERE record IS NOT NULL
)
ORDER BY {_GIVEN}, occurrence, turn;
CREATE INDEX turn_start ON turn (conversation_start);
"""
_SHARE = """
SELECT conversation_start, CASE WHEN is_mixed THEN turn.rowid ELSE 0 END, record
FROM turn JOIN question ON question.rowid = turn.question
WHERE conversation_start >= ? AND conversation_start < ?
ORDER BY conversation_start, turn.rowid
"""


def conversations(
    store: ArtifactStore, records: ArtifactRef, num_shards: int, index: int
) -> list[list[Row]]:
    """Whole conversations of one of ``num_shards`` shares, turns in order.

    Turns whose record cannot be told are conversations of their own.

    Shares are even in questions, but for conversations never being cut: each belongs where its
    first turn lies.
    """
    num_questions, turns = _by_conversation(_Records(store.root, records, store))
    share = shard_range(num_questions, num_shards, index)
    found = turns.execute(_SHARE, (share.start, share.stop)).fetchall()
    lines = "\n".join(record for *_, record in found)
    rows = decode_frame(lines.encode(), SchemaId.QA_RECORD).iter_rows(named=True)
    named_rows = zip((name for *name, _ in found), rows, strict=True)
    return [[row for _, row in pairs] for _, pairs in groupby(named_rows, lambda pair: pair[0])]


def has_mixed_turns(store: ArtifactStore, records: ArtifactRef) -> bool:
    """Whether some turns are asked on their own because their record cannot be told."""
    return _has_mixed(_Records(store.root, records, store))


def given_rows(
    run: StageRun,
    records: ArtifactRef,
    num_shards: int,
    index: int,
    model: ModelConfig,
    settings: ExtractionConfig,
    fitting: BatchSize,
) -> Iterator[Row]:
    """Rows of ``attention_map.v1`` of one shard, one per turn."""
    found = conversations(run.store, records, num_shards, index)
    if not found:
        return
    adapter = adapter_for_labels(model, run.runtime)

    def extract(
        batch: Sequence[Turns], features: Sequence[ImageFeatures]
    ) -> list[list[ExtractedAttention]]:
        return extract_from_answers(
            adapter,
            [_conversation(turns) for turns in batch],
            max_tokens=settings.max_conversation_tokens,
            features=features,
        )

    yield from attention_rows(run.store, adapter, found, run.runtime.batch_size, extract, fitting)


def _conversation(turns: Turns) -> Conversation:
    return Conversation(
        image=None,
        turns=tuple(Turn(turn["question"], next(iter(turn["answers"]), "")) for turn in turns),
        kind=QuestionKind(turns[0]["kind"]),
    )


@dataclass(frozen=True)
class _Records:
    """Questions that are gathered once per process."""

    root: str
    ref: ArtifactRef
    store: ArtifactStore = field(compare=False)


@lru_cache(maxsize=2)
def _has_mixed(records: _Records) -> bool:
    database = TemporaryDatabase(_TABLES)
    manifest = records.store.manifest(records.ref)
    for questions in records.store.all_frames(manifest, [*_NAMES, "question", "status"]):
        database.executemany(_ADD, _stored(questions, repeat("", questions.height)))
    _find_mixed(records, database)
    return database.execute("SELECT 1 FROM mixed").fetchone() is not None


@lru_cache(maxsize=2)
def _by_conversation(records: _Records) -> tuple[int, TemporaryDatabase]:
    """Number of usable questions; turns in the order of conversations, with where each starts."""
    database = TemporaryDatabase(_TABLES)
    for questions in records.store.all_frames(records.store.manifest(records.ref)):
        lines = questions.write_ndjson().split("\n")[:-1]
        database.executemany(_ADD, _stored(questions, lines))
    _find_mixed(records, database)
    database.executescript(_SORT)
    (num_questions,) = database.execute("SELECT count(*) FROM turn").fetchone()
    return num_questions, database


def _find_mixed(records: _Records, database: TemporaryDatabase) -> None:
    """Fill the table of conversations that may be several records'."""
    are_drawn = is_drawn(records.store.manifest(records.ref))
    database.executescript(_MIXED)
    database.execute(_FIND_MIXED, (are_drawn,))


def _stored(questions: pl.DataFrame, lines: Iterable[str]) -> Iterator[tuple[object, ...]]:
    """Rows of the database: what conversations are found by, and the question as it is written."""
    columns = questions.select(
        *_NAMES,
        pl.col("question").hash().reinterpret(signed=True),
        pl.col("status") == RecordStatus.OK.value,
    ).with_columns(pl.col("kind").to_physical())
    for (*values, is_usable), line in zip(columns.iter_rows(), lines, strict=True):
        yield *values, line if is_usable else None
