"""Artifact identity and the documents that commit one: recipe, shard receipts, manifest.

An artifact is input-addressed: its id digests *what was asked* (stage, stage version, schema,
identity config, ids of the inputs), never of where or how it ran. The digests in its manifest say
whether the bytes are right. ``manifest.json`` is written last and is the only commit point.
"""

import hashlib
import json
import math
from datetime import datetime
from enum import Enum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from data_contracts.enums import Stage

ID_LENGTH = 20
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_SCALARS = {str, int, bool, type(None)}


def canonical_json(value: Any) -> str:
    """Serialise plain data to one and only one text: sorted keys, no spaces, no NaN.

    Raises:
        TypeError: for anything but None, bool, int, float, str, enum, list, tuple, dict[str, ...].
        ValueError: for a float that is not finite.
    """
    return _ENCODER.encode(_plain(value))


def _plain(value: Any) -> Any:
    if type(value) in _SCALARS:  # nearly all there is, and every row of every table comes by
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be part of an artifact's identity")
        return value
    if isinstance(value, list | tuple):
        return [item if type(item) in _SCALARS else _plain(item) for item in value]
    if isinstance(value, dict):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"identity keys must be text, got {bad[0]!r}")
        return {
            key: item if type(item) in _SCALARS else _plain(item) for key, item in value.items()
        }
    raise TypeError(f"{type(value).__name__} cannot be part of an artifact's identity")


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArtifactRef(_Document):
    """Name of an artifact: all that stages pass to each other."""

    stage: Stage
    artifact_id: str = Field(pattern=rf"^[0-9a-f]{{{ID_LENGTH}}}$")

    @property
    def prefix(self) -> str:
        """Path below the store's root."""
        return f"{self.stage.value}/{self.artifact_id}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``stage/id`` back.

        Raises:
            ValueError: if the text is not of that form.
        """
        stage, _, artifact_id = text.strip("/").partition("/")
        return cls(stage=Stage(stage), artifact_id=artifact_id)

    def __str__(self) -> str:
        return self.prefix


class Recipe(_Document):
    """Everything that determines an artifact's content."""

    stage: Stage
    stage_version: int
    schema_id: str
    """Contract of the shards, for example ``attention_map.v1``; ``files`` for plain files."""
    config: dict[str, Any]
    """Identity settings only: no paths, devices, batch sizes."""
    inputs: tuple[str, ...] = ()
    """``stage/id`` of each input artifact, in order."""
    num_shards: int = Field(ge=0)

    @property
    def ref(self) -> ArtifactRef:
        """Address of the artifact that this recipe makes."""
        digest = hashlib.sha256(canonical_json(self.model_dump(mode="json")).encode()).hexdigest()
        return ArtifactRef(stage=self.stage, artifact_id=digest[:ID_LENGTH])


class ShardEntry(_Document):
    """Receipt of one finished shard: where its bytes are and what they must be."""

    index: int = Field(ge=0)
    key: str
    """Path below the artifact's prefix."""
    sha256: str
    num_bytes: int = Field(ge=0)
    num_rows: int = Field(ge=0)
    statistics: dict[str, float] = {}
    """Additive counts (status histogram, sums); the manifest holds their totals."""
    measurements: dict[str, tuple[float, ...]] = {}
    """Series observed while the shard was made, such as seconds of each batch. They differ from run
    to run, so they never enter the bytes that ``sha256`` digests."""


class Provenance(_Document):
    """Who made an artifact, when and with what; never part of its identity."""

    created_at: str
    """UTC, ISO 8601."""
    code_version: str
    """Package version and git commit where known."""
    host: str
    packages: dict[str, str]


class Manifest(_Document):
    """The commit record: an artifact without one does not exist for readers."""

    manifest_version: int = 1
    recipe: Recipe
    shards: tuple[ShardEntry, ...]
    statistics: dict[str, float]
    provenance: Provenance

    @property
    def num_rows(self) -> int:
        """Rows over all shards."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def created_at(self) -> datetime:
        """When it was committed."""
        return datetime.fromisoformat(self.provenance.created_at)
