"""Rows of different lengths, in groups that are padded together at the least cost."""

from collections.abc import Mapping

PASS_COST_COLUMNS = {"cpu": 64, "cuda": 256}
"""A pass of its own costs about as much as this many columns of padding, by type of device. On a
CPU, 8 to 128 did equally well for the built-in model, and 256 worse. On a GPU by arithmetic: an
H100 reads a 7B's weights while it would compute some 150 columns, and launches come on top."""


def pass_cost_on(device_type: str) -> int:
    """Cost of a pass, in columns of padding."""
    return PASS_COST_COLUMNS.get(device_type, PASS_COST_COLUMNS["cuda"])


def similar_lengths(lengths: Mapping[int, int], pass_cost: int) -> list[list[int]]:
    """Rows in groups of the least cost, each row padded to the longest of its group.

    Args:
        lengths: columns of each row.
        pass_cost: of a group, in columns.

    Returns:
        Groups of rising rows, the group of the shortest first.
    """
    rows = sorted(lengths, key=lambda row: (lengths[row], row))
    cost, starts = [0], [0]
    for end in range(1, len(rows) + 1):
        longest = lengths[rows[end - 1]]
        options = (
            (cost[start] + pass_cost + (end - start) * longest, start) for start in range(end)
        )
        least, start = min(options)
        cost.append(least)
        starts.append(start)
    groups, end = [], len(rows)
    while end:
        groups.append(sorted(rows[starts[end] : end]))
        end = starts[end]
    return groups[::-1]
