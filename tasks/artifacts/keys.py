"""Names of an artifact's objects, below its prefix in the store."""

from data_contracts.artifact import ArtifactRef

RECIPE = "recipe.json"
INPUTS = "inputs.json"
MANIFEST = "manifest.json"
RECEIPTS = "receipts"
CHECKPOINTS = "checkpoints"
SHARDS = "shards"
FILES = "files"
BLOBS = "blobs"
SAME_AS = "same_as.json"
"""Which artifact stands for this one, if one does."""


def file_name(key: str) -> str:
    """Name that a file was put under: ``files/{sha12}/{name}`` -> ``name``."""
    return key.split("/", 2)[-1]


def manifest_key(ref: ArtifactRef) -> str:
    """Where the commit record of an artifact is, below the store's root."""
    return f"{ref.prefix}/{MANIFEST}"


def receipt_name(index: int) -> str:
    """Name of a shard's receipt."""
    return f"{RECEIPTS}/{index:05d}.json"
