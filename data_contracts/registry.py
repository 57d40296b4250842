"""Schema ids, their contracts and their frozen fingerprints."""

import hashlib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import dataframely as dy
import polars as pl

from data_contracts.artifact import canonical_json
from data_contracts.errors import SdrpnError
from data_contracts.schemas import (
    AttentionMapV1,
    ImportRejectV1,
    LabelSetV2,
    PredictionV4,
    PseudoLabelV2,
    QaRecordV1,
    SourceFileV1,
    SourceFileV2,
)


class SchemaId(StrEnum):
    """What an artifact's shards hold, as its recipe says."""

    FILES = "files"
    """Plain files, which no contract describes."""
    SOURCE_FILE_V1 = "source_file.v1"
    """Read but no longer written."""
    SOURCE_FILE = "source_file.v2"
    QA_RECORD = "qa_record.v1"
    ATTENTION_MAP = "attention_map.v1"
    IMPORT_REJECT = "import_reject.v1"
    PSEUDO_LABEL = "pseudo_label.v2"
    LABEL_SET = "label_set.v2"
    PREDICTION = "prediction.v4"


SCHEMAS: dict[str, type[dy.Schema]] = {
    SchemaId.SOURCE_FILE_V1: SourceFileV1,
    SchemaId.SOURCE_FILE: SourceFileV2,
    SchemaId.QA_RECORD: QaRecordV1,
    SchemaId.ATTENTION_MAP: AttentionMapV1,
    SchemaId.IMPORT_REJECT: ImportRejectV1,
    SchemaId.PSEUDO_LABEL: PseudoLabelV2,
    SchemaId.LABEL_SET: LabelSetV2,
    SchemaId.PREDICTION: PredictionV4,
}


class ContractError(SdrpnError, ValueError):
    """Rows do not satisfy their contract."""


def schema_for(schema_id: str) -> type[dy.Schema]:
    """Contract with this id.

    Raises:
        ContractError: if this version of the package does not know it.
    """
    try:
        return SCHEMAS[schema_id]
    except KeyError:
        raise ContractError(
            f"unknown schema {schema_id!r}; this version reads {', '.join(SCHEMAS)}"
        ) from None


def validate(frame: pl.DataFrame, schema_id: str) -> pl.DataFrame:
    """Return the frame with the contract's columns, types and order.

    Raises:
        ContractError: naming each broken rule and how many rows break it.
    """
    try:
        return pl.DataFrame(schema_for(schema_id).validate(frame, cast=True))
    except (dy.exc.ValidationError, dy.exc.SchemaError, pl.exceptions.PolarsError) as error:
        raise ContractError(f"{schema_id}: {_broken_rules(error)}") from error


def _broken_rules(error: Exception) -> str:
    """The rules that were broken, without the query plan that polars appends."""
    return " ".join(str(error).partition("\n\n")[0].split())


def empty_frame(schema_id: str) -> pl.DataFrame:
    """A frame without rows that satisfies the contract."""
    return pl.DataFrame(schema_for(schema_id).create_empty())


def frame_of(rows: Sequence[Mapping[str, Any]], schema_id: str) -> pl.DataFrame:
    """Rows as a frame with the contract's columns and types, which hold for no rows too.

    The contract's rules are not checked, see ``validate``.
    """
    return pl.DataFrame(rows, schema=empty_frame(schema_id).schema)


def fingerprint(schema_id: str) -> str:
    """Digest of a contract's columns, types, nullability and rule names."""
    schema = schema_for(schema_id)
    columns = [
        [name, str(column.dtype), column.nullable, name in schema.primary_key()]
        for name, column in schema.columns().items()
    ]
    rules = sorted(schema._validation_rules(with_cast=False))
    return hashlib.sha256(canonical_json([columns, rules]).encode()).hexdigest()[:16]
