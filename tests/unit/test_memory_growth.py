"""What holds many rows keeps them on disk: memory does not grow with their number.

``python -m benchmarks.memory_growth`` does the same with 320,000 rows and more.
"""

from pathlib import Path

import pytest

from benchmarks.memory_growth import STAGES

SMALL, LARGE = 60_000, 120_000
"""The small one fills all caches already."""
MAX_BYTES_PER_ROW = {"given": 1_000, "training": 1_000}
"""Of memory that a further row takes. Measured: none for conversations and 140 for labels, or 600
more when the allocator takes another 32 MiB; 1,700 and 1,900 when all were in memory."""


@pytest.mark.slow
@pytest.mark.parametrize("stage", MAX_BYTES_PER_ROW)
def test_memory_does_not_grow_with_the_rows(stage: str, tmp_path: Path) -> None:
    found = []
    for num_rows in (SMALL, LARGE):
        folder = tmp_path / str(num_rows)
        folder.mkdir()
        found.append(STAGES[stage](str(folder), num_rows))
    small, large = found
    num_rows = large["rows"] - small["rows"]
    assert num_rows > (LARGE - SMALL) / 2
    growth = (large["MiB"] - small["MiB"]) * 2**20
    assert growth / num_rows < MAX_BYTES_PER_ROW[stage]
