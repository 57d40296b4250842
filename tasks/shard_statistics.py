"""Names of the counts that shards and manifests carry, and what is read from them."""

from collections.abc import Sequence

from data_contracts.artifact import Manifest
from data_contracts.enums import RecordStatus

NUM_RECORDS = "num_records"
"""Statistic of a download: records in its mix file."""

NUM_CHATS = "num_chats"
"""Statistic of a download: those of them that are chats; missing where none is."""

NUM_OVER_SUBSET = "skipped.over_max_records"
"""Statistic of usable rows that a subset leaves out; limits are about all rows."""

_DATASET = "dataset."


def status_statistic(status: str) -> str:
    """Name of the statistic that counts rows of one status."""
    return f"status.{status}"


def num_usable(records_manifest: Manifest) -> int:
    """Questions that can be asked."""
    return int(records_manifest.statistics.get(status_statistic(RecordStatus.OK), 0))


def is_drawn(records_manifest: Manifest) -> bool:
    """Whether questions were left out by chance; of releases that did not count them, perhaps."""
    limit = records_manifest.recipe.config["max_records"]
    return limit is not None and int(records_manifest.statistics.get(NUM_OVER_SUBSET, 1)) > 0


def dataset_statistic(dataset: str) -> str:
    """Name of the statistic that counts rows of one dataset."""
    return f"{_DATASET}{dataset}"


def datasets_of(labels: Sequence[Manifest]) -> list[str]:
    """Datasets that occur in label artifacts, sorted."""
    names = {name for manifest in labels for name in manifest.statistics}
    return sorted(name.removeprefix(_DATASET) for name in names if name.startswith(_DATASET))
