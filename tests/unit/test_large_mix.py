"""A generated mix665k builds in bounded memory, and every record is accounted for.

``python -m benchmarks.build_rate`` does the same with 200,000 records and more.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.build_rate import in_own_process, measure_build, prepare
from benchmarks.generated_mix import generated_record

SMALL, LARGE = 60_000, 130_000
"""The small one fills several buckets already, and all that is gathered before it is written."""
MAX_BYTES_PER_ROW = 100
"""Of memory that a further row takes. Measured: about 20 between these sizes, what allocators keep
(66 on a busy machine), and none beyond. An index of all rows with a table of their images took 200
to 300; the records as Python objects, which ``json.load`` makes, take 1,300."""


def rows_of(found: dict[str, Any]) -> int:
    return int(sum(found["rows"].values()))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_mix(tmp_path: Path):
    found = {}
    for number in (SMALL, LARGE):
        folder = tmp_path / str(number)
        folder.mkdir()
        found[number] = in_own_process(measure_build, str(folder), prepare(str(folder), number))
    small, large = found[SMALL], found[LARGE]
    num_rows = rows_of(large) - rows_of(small)
    assert num_rows > 3 * (LARGE - SMALL)
    growth = (large["peak"] - small["peak"]) * (1 << 20)
    assert growth / num_rows < MAX_BYTES_PER_ROW
    every_record_is_accounted_for(small)


def every_record_is_accounted_for(found: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    turns: Counter[bool] = Counter()
    for number in range(SMALL):
        record = generated_record(number, rng)
        turns["image" in record] += len(record["conversations"]) // 2 if "image" in record else 1
    rows = {name.removeprefix("status."): int(n) for name, n in found["rows"].items()}
    assert sum(rows.values()) == sum(turns.values())
    assert rows["text_only"] == turns[False]
    assert min(rows["missing_image"], rows["unreadable_image"], rows["duplicate"]) > 100
