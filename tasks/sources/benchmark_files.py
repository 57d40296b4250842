"""Public benchmarks, on the hub or wherever their Parquet files lie, written out as a LLaVA mix.

Layout of the folder::

    mix.json                      one record a row; what a user's data looks like
    images/<task>/000000.jpg      the images, bytes as in the Parquet file
    documents.jsonl               exact prompt, answers, category and scoring columns of each row
"""

import json
import logging
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.configs import EvaluationConfig
from data_contracts.errors import SdrpnError, one_line
from data_contracts.sources import BenchmarkSource, EvaluationSource, LlavaMixSource
from sdrpn_core.benchmarks.hub_rows import HubDocument, hub_documents, split_files
from sdrpn_core.benchmarks.tasks import TASKS, TaskSpec
from sdrpn_core.benchmarks.true_boxes import Key, TrueBoxes
from tasks.artifacts.store import ArtifactStore
from tasks.fetching.addresses import must_be_fetched
from tasks.sources.source_fetcher import Fetcher
from tasks.sources.true_box_files import read_true_boxes
from tasks.storage.addresses import absolute_uri, folder_and_name
from tasks.storage.digests import digest
from tasks.storage.storage import Storage
from tasks.storage.stored_objects import StoredObject

logger = logging.getLogger(__name__)

DOCUMENTS_NAME = "documents.jsonl"
ROWS_PER_READ = 16
"""Rows held decoded at a time; a row of HR-Bench 8K is tens of megabytes."""

_SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif"}


class BenchmarkFilesError(SdrpnError):
    """A benchmark's Parquet files cannot be found or read; the message says what to do."""


@dataclass(frozen=True)
class BenchmarkFiles:
    """A split's Parquet files."""

    storage: Storage
    files: tuple[StoredObject, ...]
    boxes: TrueBoxes

    @property
    def uris(self) -> tuple[str, ...]:
        """Address of each file."""
        return tuple(self.storage.uri(file.key) for file in self.files)

    def identity(self, source: BenchmarkSource) -> dict[str, Any]:
        """All that the written mix depends on, wherever the files lie."""
        listing = [[Path(file.key).name, file.num_bytes, file.version] for file in self.files]
        return {
            "type": source.type,
            "task": source.task.value,
            "max_documents": source.max_documents,
            "files": listing,
            "boxes": digest(json.dumps(self.boxes.to_json()).encode()),
        }


def settings_for(settings: EvaluationConfig, source: EvaluationSource) -> EvaluationConfig:
    """How one source of an evaluation is asked and scored: a public benchmark by its own rules."""
    own: dict[str, Any] = {"source": source, "benchmarks": ()}
    if isinstance(source, BenchmarkSource):
        spec = TASKS[source.task]
        length = spec.max_new_tokens or settings.max_new_tokens
        own |= {"benchmark": spec.rule, "max_new_tokens": length}
    return settings.model_copy(update=own)


TABLE_LABEL = "all benchmarks"
"""What the table of all evaluations is called; no source can be, as their names have no spaces."""


def evaluation_label(source: str, threshold: float | None) -> str:
    """What an evaluation of a source is called, with a region threshold or with the RPN's own."""
    return source if threshold is None else f"{source} at {threshold:g}"


def find_benchmark(store: ArtifactStore, source: BenchmarkSource) -> BenchmarkFiles:
    """Look for a benchmark's files: where the source says, else under its hub ids.

    Raises:
        BenchmarkFilesError: if there are none.
    """
    spec = TASKS[source.task]
    roots = [source.files] if source.files else [f"hf://datasets/{name}" for name in spec.hub_ids]
    reasons: list[str] = []
    failure: Exception | None = None
    for root in roots:
        try:
            storage, files = _list(store, root, spec)
        except (OSError, SdrpnError) as error:
            failure = failure or error
            reasons.append(f"{root}: {one_line(error)}")
            continue
        if files:
            return BenchmarkFiles(storage, files, read_true_boxes(store, source.boxes))
        reasons.append(f"{root}: no Parquet file of split {spec.split!r}")
    raise BenchmarkFilesError(
        f"benchmark {source.task.value}: {'; '.join(reasons)}. Give `files` the folder that holds "
        f"{spec.file_stems[0]}-*.parquet, as downloaded from {spec.hub_ids[0]}"
    ) from failure


def _list(
    store: ArtifactStore, root: str, spec: TaskSpec
) -> tuple[Storage, tuple[StoredObject, ...]]:
    absolute = absolute_uri(root)
    parent, name = folder_and_name(absolute.rstrip("/"))
    storage = store.storage.elsewhere(parent)
    if name.endswith(".parquet"):
        return storage, tuple(storage.describe([name]).values())
    found = {file.key.removeprefix(f"{name}/"): file for file in storage.find(name)}
    return storage, tuple(found[path] for path in split_files(spec, found))


def write_benchmark(
    folder: Path, source: BenchmarkSource, found: BenchmarkFiles, fetcher: Fetcher
) -> LlavaMixSource:
    """Write a benchmark as a mix below a folder; returns the mix.

    Raises:
        BenchmarkFilesError: if a file is not the benchmark's.
        DownloadError: if it cannot be fetched.
    """
    spec = TASKS[source.task]
    written = Storage(str(folder))
    rows = islice(hub_documents(spec, _rows(spec, found, fetcher)), source.max_documents)
    records, documents, matched = [], [], set[Key]()
    for number, document in enumerate(rows):
        name = f"{source.task.value}/{number:06d}{_suffix(document.image)}"
        written.put(f"images/{name}", document.image)
        source_id = f"{number:06d}-{document.question_id}"
        records.append(_record(source_id, name, document))
        documents.append(_document_row(source_id, document, found.boxes))
        if (key := _box_key(document, found.boxes)) is not None:
            matched.add(key)
    if not any(answer.strip() for row in documents for answer in row["answers"]):
        raise BenchmarkFilesError(
            f"benchmark {source.task.value}: not one of its {len(documents)} rows has an answer: "
            f"give `files` split {spec.split!r}, not one for submissions"
        )
    _warn_of_unmatched(source, found.boxes, matched)
    written.put("mix.json", json.dumps(records).encode())
    lines = "".join(f"{json.dumps(row)}\n" for row in documents)
    written.put(DOCUMENTS_NAME, lines.encode())
    return LlavaMixSource(
        name=source.name,
        records=written.uri("mix.json"),
        images=written.uri("images"),
        copy_images=True,
    )


def _rows(spec: TaskSpec, found: BenchmarkFiles, fetcher: Fetcher) -> Iterator[dict[str, Any]]:
    wanted = {*spec.columns, "image", "image_id", "question", "answers", "answer", "label"}
    for file in found.files:
        with _opened(found.storage, file.key, fetcher) as data:
            try:
                parquet = pq.ParquetFile(data)
                columns = [name for name in parquet.schema_arrow.names if name in wanted]
                for batch in parquet.iter_batches(batch_size=ROWS_PER_READ, columns=columns):
                    yield from batch.to_pylist()
            except (ConnectionError, TimeoutError):
                raise
            except (OSError, ValueError, OverflowError, KeyError, pa.ArrowException) as error:
                uri = found.storage.uri(file.key)
                raise BenchmarkFilesError(f"{uri}: cannot be read as Parquet ({error})") from error


@contextmanager
def _opened(storage: Storage, key: str, fetcher: Fetcher) -> Iterator[BinaryIO]:
    """A file to be read piece by piece: where it is, or fetched first."""
    uri = storage.uri(key)
    if not must_be_fetched(uri):
        with storage.reader(key) as data:
            yield data
        return
    fetched = fetcher.get(uri).path
    with Storage(str(fetched.parent)).reader(fetched.name) as data:
        yield data


def _suffix(image: bytes) -> str:
    return next((name for start, name in _SUFFIXES.items() if image.startswith(start)), ".img")


def _record(source_id: str, image: str, document: HubDocument) -> dict[str, Any]:
    talk = [{"from": "human", "value": f"<image>\n{document.question}"}]
    talk.append({"from": "gpt", "value": document.answers[0]})
    return {"id": source_id, "image": image, "conversations": talk}


def _document_row(source_id: str, document: HubDocument, boxes: TrueBoxes) -> dict[str, Any]:
    return {
        "source_id": source_id,
        "question_id": document.question_id,
        "question": document.question,
        "answers": document.answers,
        "category": document.category,
        "kind": document.kind.value,
        "fields": dict(document.fields),
        "box": boxes.find(document.question_id, document.asked, document.image_name),
    }


def _box_key(document: HubDocument, boxes: TrueBoxes) -> Key | None:
    return boxes.key(document.question_id, document.asked, document.image_name)


def _warn_of_unmatched(source: BenchmarkSource, boxes: TrueBoxes, matched: Set[Key]) -> None:
    """Say which boxes nobody asks about; of the first documents alone, only if that is all."""
    unmatched = boxes.without(matched)
    if unmatched and (source.max_documents is None or not matched):
        logger.warning(
            f"benchmark {source.task.value}: {len(unmatched)} of {len(unmatched) + len(matched)} "
            f"true boxes belong to no question; the first: {unmatched[0]!r}"
        )
