"""Tables to bytes and back: the same rows always give the same bytes.

QA records are JSON Lines, which people read and edit; everything else is Parquet. Rows are checked
against their contract before they become bytes, so reading only restores the contract's types.
"""

import io
from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from data_contracts.artifact import canonical_json
from data_contracts.registry import empty_frame, schema_for, validate

_JSONL_SCHEMAS = {"qa_record.v1"}
_ROWS_PER_GROUP = 1024


def extension(schema_id: str) -> str:
    """File extension of a contract's shards, with the dot."""
    return ".jsonl" if schema_id in _JSONL_SCHEMAS else ".parquet"


def encode_frame(frame: pl.DataFrame, schema_id: str, *, keep_order: bool = False) -> bytes:
    """Check rows against their contract and write them, sorted by primary key.

    Raises:
        ContractError: naming each broken rule and how many rows break it.
    """
    rows = validate(frame, schema_id)
    key = schema_for(schema_id).primary_key()
    if key and not keep_order:
        rows = rows.sort(key)
    if schema_id in _JSONL_SCHEMAS:
        return "".join(f"{canonical_json(row)}\n" for row in rows.iter_rows(named=True)).encode()
    table = rows.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        version="2.6",
        compression="zstd",
        compression_level=3,
        row_group_size=_ROWS_PER_GROUP,
    )
    return buffer.getvalue()


def decode_frame(data: bytes, schema_id: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read rows back with the contract's types, or only some of its columns."""
    contract = empty_frame(schema_id).schema
    wanted = list(contract) if columns is None else list(columns)
    if schema_id not in _JSONL_SCHEMAS:
        rows = pl.read_parquet(data, columns=wanted)
    elif data:
        stored = {name: _as_stored(kind) for name, kind in contract.items()}
        rows = pl.read_ndjson(data, schema=stored)
    else:
        rows = empty_frame(schema_id)
    return rows.select(pl.col(name).cast(contract[name]) for name in wanted)


def _as_stored(kind: Any) -> Any:
    """JSON has no enums: they are text until cast."""
    return pl.String() if isinstance(kind, pl.Enum) else kind
