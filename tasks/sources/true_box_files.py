"""Files of true boxes, as they are published: JSON Lines, JSON, Parquet, or V*'s folder."""

import io
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from data_contracts.errors import SdrpnError
from data_contracts.json_lines import json_lines, json_value
from sdrpn_core.benchmarks.true_boxes import TrueBoxes, parse_true_boxes
from tasks.artifacts.store import ArtifactStore
from tasks.storage.addresses import absolute_uri, folder_and_name

COLUMNS = ("question_id", "dataset_id", "image", "question", "box", "bbox", "bboxs")


class TrueBoxError(SdrpnError):
    """True boxes cannot be read; the message says what would do."""


def read_true_boxes(store: ArtifactStore, address: str | None) -> TrueBoxes:
    """Read a file or folder of true boxes; none for None.

    Raises:
        TrueBoxError: naming the file and what is wrong.
    """
    if address is None:
        return TrueBoxes()
    try:
        return parse_true_boxes(_rows(store, absolute_uri(address)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrueBoxError(
            f"{address}: no true boxes can be read ({error}); one a line: "
            '{"question_id": "...", "box": [x0, y0, x1, y1]}, or as published with TextVQA, V* '
            "or Visual-CoT"
        ) from error


def _rows(store: ArtifactStore, uri: str) -> Iterator[dict[str, Any]]:
    if uri.endswith(".parquet"):
        table = pq.ParquetFile(io.BytesIO(store.read_uri(uri)))
        names = [n for n in table.schema_arrow.names if n in COLUMNS and n != "image"]
        yield from table.read(names).to_pylist()
    elif uri.endswith(".jsonl"):
        yield from json_lines(store.read_uri(uri))
    elif uri.endswith(".json"):
        yield from json_value(store.read_uri(uri))
    else:
        yield from _annotations(store, uri)


def _annotations(store: ArtifactStore, folder: str) -> Iterator[dict[str, Any]]:
    """V*: beside each image a JSON file of the same name; questions have ids in a list."""
    parent, name = folder_and_name(folder.rstrip("/"))
    storage = store.storage.elsewhere(parent)
    keys = {file.key.removeprefix(f"{name}/"): file.key for file in storage.find(name)}
    listed = keys.get("test_questions.jsonl")
    questions = json_lines(storage.read(listed)) if listed else []
    ids = {row["image"].rpartition(".")[0]: row["question_id"] for row in questions}
    annotations = sorted(key for key in keys if key.endswith(".json"))
    if not annotations:
        raise ValueError("the folder holds no JSON files")
    for key in annotations:
        row = json_value(storage.read(keys[key]))
        own_id = ids.get(key.removesuffix(".json"))
        yield row if own_id is None else {**row, "question_id": own_id}
