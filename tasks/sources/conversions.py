"""What is published in a form that cannot be read in ranges is rewritten once, beside the fetched
files: which conversions there are, and where what they write is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_contracts.artifact import canonical_json
from data_contracts.sources import ParquetSource, VisualCotSource
from tasks.storage.digests import digest

_VERSION = 2
"""Raise when a conversion writes other files."""
_PARQUET_SETTINGS = {"name", "image_column", "question_column", "answer_columns", "id_column"}


@dataclass(frozen=True)
class Conversion:
    """One way of rewriting files."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All that the written files depend on beside the given ones, as plain data."""

    def folder(self, downloads: Path, digests: Sequence[str]) -> Path:
        """Where the rewritten files are kept; the folder is there once they are complete.

        Args:
            downloads: where fetched files are kept.
            digests: SHA-256 of the given files, in their order.
        """
        key = canonical_json([_VERSION, self.name, list(digests), dict(self.settings)])
        return downloads / f"{digest(key.encode())}-{self.name}"

    def was_ever_made(self, downloads: Path) -> bool:
        """Whether files of any digests were rewritten so; tells without reading them."""
        return any(downloads.glob(f"*-{self.name}"))


def gunzip() -> Conversion:
    """A gzipped tar becomes a plain one."""
    return Conversion("gunzip")


def visual_cot(source: VisualCotSource) -> Conversion:
    """Visual-CoT's lines become records and true boxes."""
    return Conversion("visual-cot", {"image_folder": source.image_folder})


def parquet(source: ParquetSource) -> Conversion:
    """Rows with image bytes become records and one tar of images."""
    return Conversion("parquet", source.model_dump(mode="json", include=_PARQUET_SETTINGS))
