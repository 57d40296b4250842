"""Names of an artifact's objects, below its prefix in the store."""

from data_contracts.artifact import ArtifactRef

FILES_SCHEMA = "files"


def file_name(key: str) -> str:
    """Name that a file was put under: ``files/{sha12}/{name}`` -> ``name``."""
    return key.split("/", 2)[-1]


def manifest_key(ref: ArtifactRef) -> str:
    """Where the commit record of an artifact is, below the store's root."""
    return f"{ref.prefix}/manifest.json"


def receipt_name(index: int) -> str:
    """Name of a shard's receipt."""
    return f"receipts/{index:05d}.json"
