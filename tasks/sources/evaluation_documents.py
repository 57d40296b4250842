"""From questions to documents: what a source says beside them (true boxes, a benchmark's rows).

A process reads that once for all shards of an evaluation, as it is of the whole source.
"""

import logging
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import polars as pl

from data_contracts.artifact import ArtifactRef
from data_contracts.enums import QuestionKind
from data_contracts.json_lines import json_lines
from data_contracts.settings_files import parse_lines
from sdrpn_core.benchmarks import Document
from sdrpn_core.geometry import BoxXYXY
from tasks.artifacts.store import ArtifactStore
from tasks.sources.benchmark_files import DOCUMENTS_NAME
from tasks.sources.downloaded_files import BOXES_NAME, IMAGES_FOLDER
from tasks.sources.files import read_source_file
from tasks.sources.mix_boxes import MixBox, MixBoxes

logger = logging.getLogger(__name__)

Row = dict[str, Any]

_ASKED = ("question_id", "dataset", "source_id", "turn", "image_sha256", "question")


class SourceDocuments:
    """The documents of one downloaded source."""

    def __init__(self, store: ArtifactStore, files: ArtifactRef, benchmark: str) -> None:
        """Read what lies beside the questions.

        Args:
            store: the store.
            files: the downloaded source.
            benchmark: name of the scoring rule.
        """
        self._benchmark = benchmark
        source = _Source.of(store, files)
        self._rows = _benchmark_rows(source)
        self._boxes = _mix_boxes(source)

    def document(self, question: Mapping[str, Any]) -> Document:
        """The document of one question (a row of ``qa_record.v1``)."""
        row = self._rows.get(question["source_id"])
        return self._of_mix(question) if row is None else self._of_benchmark(question, row)

    def _of_mix(self, question: Mapping[str, Any]) -> Document:
        known = self._boxes.find(question)
        return Document(
            benchmark=self._benchmark,
            question_id=question["question_id"],
            image_uri=question["image_uri"],
            question=question["question"],
            answers=tuple(question["answers"]),
            kind=QuestionKind(question["kind"]),
            category=known.layout if known else "",
            true_box=BoxXYXY(*known.box) if known else None,
            fields=_mix_fields(question),
        )

    def _of_benchmark(self, question: Mapping[str, Any], row: Row) -> Document:
        return Document(
            benchmark=self._benchmark,
            question_id=question["question_id"],
            image_uri=question["image_uri"],
            question=row["question"],
            answers=tuple(row["answers"]),
            kind=QuestionKind(row["kind"]),
            category=row["category"],
            true_box=BoxXYXY(*row["box"]) if row["box"] else None,
            fields=row["fields"],
        )


def _mix_fields(question: Mapping[str, Any]) -> Row:
    """What scoring rules read beside ``answers``, named as benchmarks name it."""
    answers = question["answers"]
    return {"answer": answers[0], "dataset": question["dataset"]} if answers else {}


def mix_boxes(store: ArtifactStore, files: ArtifactRef) -> MixBoxes:
    """The true boxes beside a downloaded source's records; none of a public benchmark."""
    return _mix_boxes(_Source.of(store, files))


def warn_of_unasked_boxes(store: ArtifactStore, questions: ArtifactRef, files: ArtifactRef) -> None:
    """Say how many true boxes nobody is asked about: a slip in their paths or ids costs figures."""
    boxes = mix_boxes(store, files)
    if not boxes.lines:
        return
    folders = store.manifest(questions).recipe.config["selection"]["folders"]
    rows = (row for one in store.frames(questions, _ASKED) for row in one.iter_rows(named=True))
    if unasked := [box for box in boxes.unasked(rows) if box.is_in(folders)]:
        said = unasked[0].model_dump(include={"source_id", "image", "turn"}, exclude_none=True)
        logger.warning(
            f"{len(unasked)} of {len(boxes.lines)} true boxes belong to no question that is "
            f"asked; the first: {said}"
        )


def benchmark_rows(
    store: ArtifactStore, questions: ArtifactRef, files: ArtifactRef
) -> dict[str, Row]:
    """Question id -> the scoring columns of a public benchmark's row; empty for other sources."""
    rows = _benchmark_rows(_Source.of(store, files))
    asked = store.read_frame(questions, ["question_id", "source_id"]).iter_rows()
    return {
        question: rows[source_id]["fields"] for question, source_id in asked if source_id in rows
    }


def mix_rows(store: ArtifactStore, questions: ArtifactRef) -> dict[str, Row]:
    """Question id -> what a question of one's own is scored by."""
    asked = store.read_frame(questions, ["question_id", "answers", "dataset"])
    return {
        row["question_id"]: {"answers": row["answers"], **_mix_fields(row)}
        for row in asked.iter_rows(named=True)
    }


@dataclass(frozen=True)
class _Source:
    """A downloaded source as it is; made anew, it is another."""

    root: str
    files: ArtifactRef
    manifest: str
    """Digest of its manifest."""
    store: ArtifactStore = field(compare=False)

    @classmethod
    def of(cls, store: ArtifactStore, files: ArtifactRef) -> "_Source":
        return cls(store.root, files, store.manifest_digest(files), store)


@lru_cache(maxsize=2)
def _benchmark_rows(source: _Source) -> Mapping[str, Row]:
    """Rows of a public benchmark by their source id; empty for other sources."""
    return {
        row["source_id"]: row
        for _, data in _contents(source, DOCUMENTS_NAME)
        for row in json_lines(data)
    }


@lru_cache(maxsize=2)
def _mix_boxes(source: _Source) -> MixBoxes:
    lines = [
        box for uri, data in _contents(source, BOXES_NAME) for box in parse_lines(MixBox, data, uri)
    ]
    paths = {box.path for box in lines if box.path is not None}
    return MixBoxes(lines, _image_digests(source.store, source.files, paths))


def _image_digests(store: ArtifactStore, files: ArtifactRef, names: Set[str]) -> dict[str, str]:
    """Digest of each of these images that there is; the table of all images is not held."""
    wanted = {f"{IMAGES_FOLDER}{name}": name for name in names}
    if not wanted:
        return {}
    rows = (row for table in store.frames(files, ["path", "sha256"]) for row in table.iter_rows())
    return {wanted[path]: sha256 for path, sha256 in rows if path in wanted}


def _contents(source: _Source, name: str) -> Iterator[tuple[str, bytes]]:
    """Address and bytes of a file beside the records, if the source has it."""
    store = source.store
    documents = store.read_shard_frame(store.manifest(source.files), 0)
    for file in documents.filter(pl.col("path") == name).iter_rows(named=True):
        yield file["uri"], read_source_file(store, file["uri"], file["sha256"])
