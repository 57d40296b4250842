"""Which rows a shard holds, and which shards hold some rows."""

from collections.abc import Sequence

from data_contracts.artifact import Recipe


def shard_range(num_rows: int, num_shards: int, index: int) -> range:
    """Rows of one shard when rows are spread evenly, in order."""
    return range(index * num_rows // num_shards, (index + 1) * num_rows // num_shards)


def image_range(num_images: int, recipe: Recipe, index: int) -> range:
    """Images, in order of their paths, that a download's shard (from 1) holds."""
    return shard_range(num_images, recipe.num_shards - 1, index - 1)


def overlapping(counts: Sequence[int], wanted: range) -> list[tuple[int, range]]:
    """Where a range of rows lies in consecutive shards of these row counts.

    Returns:
        (shard, rows within it) of each shard that holds any of the range.
    """
    found = []
    start = 0
    for index, count in enumerate(counts):
        low, high = max(wanted.start, start), min(wanted.stop, start + count)
        if low < high:
            found.append((index, range(low - start, high - start)))
        start += count
    return found
