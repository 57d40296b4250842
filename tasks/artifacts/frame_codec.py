"""Tables to bytes and back: the same rows always give the same bytes.

QA records are JSON Lines, which people read and edit; everything else is Parquet. Rows are checked
against their contract before they become bytes, so reading only restores the contract's types.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.registry import SchemaId, empty_frame, schema_for, validate

_JSONL_SCHEMAS = {SchemaId.QA_RECORD}
"""Texts and whole numbers only: of other numbers there are several ways to write the same one."""
_ROWS_PER_GROUP = 1024
_PARQUET = {"version": "2.6", "compression": "zstd", "compression_level": 3}

# Shards are made side by side. Polars loads numpy when it first meets an array, and if several
# threads are the first at once, it fails for some of them: so it meets one here.
pl.Series(np.empty(0))


def extension(schema_id: str) -> str:
    """File extension of a contract's shards, with the dot."""
    return ".jsonl" if schema_id in _JSONL_SCHEMAS else ".parquet"


def encode_frame(frame: pl.DataFrame, schema_id: str) -> bytes:
    """Check rows against their contract and write them, sorted by primary key.

    Raises:
        ContractError: naming each broken rule and how many rows break it.
    """
    rows = validate(frame, schema_id)
    key = schema_for(schema_id).primary_key()
    if key:
        rows = rows.sort(key)
    if schema_id in _JSONL_SCHEMAS:
        # The text of ``canonical_json``, as a test holds, at a tenth of its time.
        return rows.select(sorted(rows.columns)).write_ndjson().encode()
    buffer = io.BytesIO()
    pq.write_table(_table(rows), buffer, row_group_size=_ROWS_PER_GROUP, **_PARQUET)
    return buffer.getvalue()


def write_frames(path: Path, frames: Iterable[pl.DataFrame], schema_id: str) -> int:
    """Write rows that come in parts into one Parquet file, in the order they come in.

    Only one row group is held at a time. That no primary key occurs in two parts is up to the
    caller: each part is checked by itself.

    Returns:
        Number of rows.

    Raises:
        ContractError: naming each broken rule and how many rows break it.
    """
    num_rows = 0
    schema = _table(empty_frame(schema_id)).schema
    with pq.ParquetWriter(path, schema, **_PARQUET) as writer:
        for group in _groups(validate(frame, schema_id) for frame in frames):
            writer.write_table(_table(group), _ROWS_PER_GROUP)
            num_rows += group.height
    return num_rows


def _groups(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same rows in frames of a row group's length, the last one shorter."""
    held: list[pl.DataFrame] = []
    for frame in frames:
        held.append(frame)
        if sum(part.height for part in held) < _ROWS_PER_GROUP:
            continue
        rows = pl.concat(held)
        num_whole = rows.height // _ROWS_PER_GROUP * _ROWS_PER_GROUP
        yield from rows.head(num_whole).iter_slices(_ROWS_PER_GROUP)
        held = [rows.slice(num_whole)]
    rest = pl.concat(held) if held else None
    if rest is not None and rest.height:
        yield rest


def _table(rows: pl.DataFrame) -> pa.Table:
    return rows.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())


def decode_frame(data: bytes, schema_id: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read rows back with the contract's types, or only some of its columns."""
    contract = empty_frame(schema_id).schema
    wanted = list(contract) if columns is None else list(columns)
    if schema_id not in _JSONL_SCHEMAS:
        rows = pl.read_parquet(data, columns=wanted)
    elif data:
        stored = {name: _as_stored(contract[name]) for name in wanted}
        rows = pl.read_ndjson(data, schema=stored)
    else:
        rows = empty_frame(schema_id)
    return rows.select(pl.col(name).cast(contract[name]) for name in wanted)


def read_groups(file: BinaryIO, schema_id: str, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Some columns of a Parquet file with the contract's types, a row group at a time."""
    contract = empty_frame(schema_id).schema
    parquet = pq.ParquetFile(file)
    for index in range(parquet.num_row_groups):
        rows = pl.DataFrame(parquet.read_row_group(index, list(columns)))
        yield rows.select(pl.col(name).cast(contract[name]) for name in columns)


def _as_stored(kind: Any) -> Any:
    """JSON has no enums: they are text until cast."""
    return pl.String() if isinstance(kind, pl.Enum) else kind
