"""Extraction from the data set's own answers: questions gathered into conversations, then read.

The turns of a conversation are those of the questions artifact: all of them with
``records.turns: all``, and fewer where ``records.max_records`` draws questions by chance.

Questions are in the order of their ids, a conversation's turns anywhere among them. Each process
sorts them once, on disk; then a share is read without the others, and memory holds one share.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby

import polars as pl
from PIL import Image

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import ExtractionConfig, ModelConfig
from data_contracts.enums import QuestionKind, RecordStatus
from data_contracts.registry import SchemaId
from sdrpn_core.extraction.conversation_layout import Conversation, Turn
from sdrpn_core.extraction.generated_answers import ExtractedAttention
from sdrpn_core.extraction.teacher_forcing import extract_from_answers
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.temporary_database import TemporaryDatabase
from tasks.artifacts.frame_codec import decode_frame
from tasks.artifacts.row_ranges import shard_range
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.attention_rows import attention_rows
from tasks.models import adapter_for
from tasks.opened_images import Row, Turns

_GIVEN = "dataset, source_id, image_uri, kind"
_TABLES = """
CREATE TABLE question (
    dataset TEXT, source_id TEXT, image_uri TEXT, kind INTEGER, turn INTEGER,
    question_id TEXT, record TEXT
);
CREATE TABLE turn (conversation_start INTEGER, question INTEGER);
"""
# Numbers are sorted, records stay where they are. Records may share an id and an image: a
# conversation still has each turn once.
_SORT = f"""
INSERT INTO turn
SELECT rank() OVER (ORDER BY {_GIVEN}, occurrence) - 1, number
FROM (
    SELECT
        {_GIVEN}, turn, rowid AS number,
        row_number() OVER (PARTITION BY {_GIVEN}, turn ORDER BY question_id) AS occurrence
    FROM question
)
ORDER BY {_GIVEN}, occurrence, turn;
CREATE INDEX turn_start ON turn (conversation_start);
"""
_SHARE = """
SELECT conversation_start, record FROM turn JOIN question ON question.rowid = turn.question
WHERE conversation_start >= ? AND conversation_start < ?
ORDER BY conversation_start, turn.rowid
"""


def conversations(
    store: ArtifactStore, records: ArtifactRef, num_shards: int, index: int
) -> list[list[Row]]:
    """Whole conversations of one of ``num_shards`` shares, turns in order.

    Shares are even in questions, but for conversations never being cut: each belongs where its
    first turn lies.
    """
    num_questions, turns = _by_conversation(_Records(store.root, records, store))
    share = shard_range(num_questions, num_shards, index)
    found = turns.execute(_SHARE, (share.start, share.stop)).fetchall()
    lines = "\n".join(record for _, record in found)
    rows = decode_frame(lines.encode(), SchemaId.QA_RECORD).iter_rows(named=True)
    starts_and_rows = zip((start for start, _ in found), rows, strict=True)
    return [
        [row for _, row in pairs] for _, pairs in groupby(starts_and_rows, lambda pair: pair[0])
    ]


def given_rows(
    run: StageRun,
    records: ArtifactRef,
    num_shards: int,
    index: int,
    model: ModelConfig,
    settings: ExtractionConfig,
) -> Iterator[Row]:
    """Rows of ``attention_map.v1`` of one shard, one per turn."""
    found = conversations(run.store, records, num_shards, index)
    if not found:
        return
    adapter = adapter_for(model, run.runtime)

    def extract(
        batch: Sequence[tuple[Turns, Image.Image]], features: Sequence[ImageFeatures]
    ) -> list[list[ExtractedAttention]]:
        return extract_from_answers(
            adapter,
            [_conversation(turns, image) for turns, image in batch],
            max_tokens=settings.max_conversation_tokens,
            features=features,
        )

    yield from attention_rows(run.store, adapter, found, run.runtime.batch_size, extract)


def _conversation(turns: Turns, image: Image.Image) -> Conversation:
    return Conversation(
        image=image,
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
def _by_conversation(records: _Records) -> tuple[int, TemporaryDatabase]:
    """Number of usable questions; turns in the order of conversations, with where each starts."""
    database = TemporaryDatabase(_TABLES)
    num_questions = 0
    for questions in records.store.frames(records.ref):
        usable = questions.filter(pl.col("status") == RecordStatus.OK.value)
        num_questions += usable.height
        database.executemany("INSERT INTO question VALUES (?, ?, ?, ?, ?, ?, ?)", _stored(usable))
    database.executescript(_SORT)
    return num_questions, database


def _stored(questions: pl.DataFrame) -> Iterator[tuple[object, ...]]:
    """Rows of the database: what conversations are found by, and the question as it is written."""
    names = ("dataset", "source_id", "image_uri", "kind", "turn", "question_id")
    columns = questions.select(names).with_columns(pl.col("kind").to_physical())
    lines = questions.write_ndjson().split("\n")[:-1]
    for values, line in zip(columns.iter_rows(), lines, strict=True):
        yield *values, line
