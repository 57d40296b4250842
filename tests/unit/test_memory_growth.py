"""What holds many rows keeps them on disk: memory does not grow with their number.

``python -m benchmarks.memory_growth`` does the same with 320,000 rows and more.
"""

from pathlib import Path

import pytest

from benchmarks.memory_growth import STAGES

SMALL, LARGE = 20_000, 60_000
MAX_BYTES_PER_ROW = {"training": 800}
"""Of memory that a further row takes. Measured: 230 for training between these sizes, where caches
still fill, and 50 beyond; 2,300 with the labels in memory."""


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
