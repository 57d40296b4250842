"""The table of a downloaded source's files: what is in it under which name, and its rows.

Files are blobs of the artifact, except images that stay where they are; either way the table has
their digests.
"""

from pathlib import Path
from typing import Any

import polars as pl

from tasks.artifacts.writer import ArtifactWriter
from tasks.fetching.kept_files import FetchedFile
from tasks.storage.digests import digest

RECORDS_NAME = "records.json"
BOXES_NAME = "boxes.jsonl"
IMAGES_FOLDER = "images/"


def file_table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """The table of some rows; a row without a ``problem`` has none."""
    types = {"path": pl.String, "uri": pl.String, "num_bytes": pl.Int64, "sha256": pl.String}
    return pl.DataFrame(rows, schema=types | {"problem": pl.String})


def row_in_place(path: str, uri: str, data: bytes) -> dict[str, Any]:
    """The row of a file that is at an address already.

    Args:
        path: its name in the table.
        uri: the address.
        data: what it holds.
    """
    return {"path": path, "uri": uri, "num_bytes": len(data), "sha256": digest(data)}


def kept_row(writer: ArtifactWriter, path: str, data: bytes) -> dict[str, Any]:
    """Make bytes a blob of the artifact; returns their row."""
    return row_in_place(path, writer.put_blob(data, _suffix(path)), data)


def kept_file_row(writer: ArtifactWriter, name: str, file: FetchedFile) -> dict[str, Any]:
    """Make a file of any size a blob of the artifact; returns its row."""
    uri = writer.put_blob_file(file.path, file.sha256, _suffix(name), may_link=False)
    return {"path": name, "uri": uri, "num_bytes": file.num_bytes, "sha256": file.sha256}


def _suffix(path: str) -> str:
    suffix = Path(path).suffix.lower()
    is_plain = suffix[1:].isalnum() and suffix.isascii() and len(suffix) <= 6
    return suffix if is_plain else ""
