"""Grouping rows of different lengths, against every grouping there is."""

from itertools import chain, combinations, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from sdrpn_core.row_groups import similar_lengths


@settings(deadline=None)
@given(st.lists(st.integers(1, 900), max_size=7), st.sampled_from([0, 64, 256]))
def test_rows_of_similar_length_run_together_at_the_least_cost(
    lengths: list[int], pass_cost: int
) -> None:
    """Against every way of cutting the sorted lengths; rows of a group rise, none is lost."""
    found = similar_lengths(dict(enumerate(lengths)), pass_cost)
    assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
    assert all(rows == sorted(rows) and rows for rows in found)
    in_order = sorted(lengths)
    edges = range(1, len(lengths))
    cuts = chain.from_iterable(combinations(edges, n) for n in range(len(lengths)))
    groups = (
        [in_order[start:end] for start, end in pairwise([0, *cut, len(lengths)])] for cut in cuts
    )

    def cost(groups: list[list[int]]) -> int:
        return sum(pass_cost + len(group) * max(group) for group in groups)

    least = min(map(cost, groups), default=0)
    assert cost([[lengths[row] for row in rows] for rows in found]) == least
