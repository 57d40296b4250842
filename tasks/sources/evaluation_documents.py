"""From questions to documents: what a source says beside them (true boxes, a benchmark's rows)."""

from collections.abc import Iterator, Mapping, Set
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
from tasks.sources.mix_boxes import MixBox

Row = dict[str, Any]


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
        lines = _lines(store, files, DOCUMENTS_NAME)
        self._rows: Mapping[str, Row] = {row["source_id"]: row for row in lines}
        boxes = [
            box
            for uri, data in _contents(store, files, BOXES_NAME)
            for box in parse_lines(MixBox, data, uri)
        ]
        digests = _image_digests(store, files, {box.image for box in boxes})
        # Boxes that name no source id are meant for every question of their image and turn.
        self._boxes: Mapping[tuple[str, int, str | None], MixBox] = {
            (digests[box.image], box.turn, box.source_id): box
            for box in boxes
            if box.image in digests
        }

    def document(self, question: Mapping[str, Any]) -> Document:
        """The document of one question (a row of ``qa_record.v1``)."""
        row = self._rows.get(question["source_id"])
        return self._of_mix(question) if row is None else self._of_benchmark(question, row)

    def _of_mix(self, question: Mapping[str, Any]) -> Document:
        place = (question["image_sha256"], question["turn"])
        known = self._boxes.get((*place, question["source_id"])) or self._boxes.get((*place, None))
        return Document(
            benchmark=self._benchmark,
            question_id=question["question_id"],
            image_uri=question["image_uri"],
            question=question["question"],
            answers=tuple(question["answers"]),
            kind=QuestionKind(question["kind"]),
            category=known.layout if known else "",
            true_box=BoxXYXY(*known.box) if known else None,
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


def benchmark_rows(
    store: ArtifactStore, questions: ArtifactRef, files: ArtifactRef
) -> dict[str, Row]:
    """Question id -> the scoring columns of a public benchmark's row; empty for other sources."""
    fields = {row["source_id"]: row["fields"] for row in _lines(store, files, DOCUMENTS_NAME)}
    asked = store.read_frame(questions, ["question_id", "source_id"]).iter_rows()
    return {question: fields[source_id] for question, source_id in asked if source_id in fields}


def _image_digests(store: ArtifactStore, files: ArtifactRef, names: Set[str]) -> dict[str, str]:
    """Digest of each of these images that there is; the table of all images is not held."""
    wanted = {f"{IMAGES_FOLDER}{name}": name for name in names}
    if not wanted:
        return {}
    rows = (row for table in store.frames(files, ["path", "sha256"]) for row in table.iter_rows())
    return {wanted[path]: sha256 for path, sha256 in rows if path in wanted}


def _lines(store: ArtifactStore, files: ArtifactRef, name: str) -> list[Row]:
    """Rows of a JSON Lines file beside the records; none if the source has no such file."""
    return [row for _, data in _contents(store, files, name) for row in json_lines(data)]


def _contents(store: ArtifactStore, files: ArtifactRef, name: str) -> Iterator[tuple[str, bytes]]:
    """Address and bytes of a file beside the records, if the source has it."""
    documents = store.read_shard_frame(files, 0).filter(pl.col("path") == name)
    for file in documents.iter_rows(named=True):
        yield file["uri"], read_source_file(store, file["uri"], file["sha256"])
