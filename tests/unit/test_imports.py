"""What is imported is never looked at by the garbage collector, and all else is."""

import gc
import subprocess
import sys
from pathlib import Path

from flows.worker_processes import in_processes

LOADING = """
import gc, sys
from flows.imports import uncollected

found = []
gc.callbacks.append(lambda phase, info: found.append(phase))
with uncollected():
    kept = [[] for _ in range(100_000)]
    assert not found
gc.collect()
assert found and not any(one is kept for one in gc.get_objects())
with uncollected():
    sys.modules["torch"] = gc
with uncollected():  # a model may be here
    assert gc.isenabled()
    model = []
assert any(one is model for one in gc.get_objects())
"""


def test_nothing_is_collected_while_modules_are_imported_and_never_they():
    """It took 1.8 of the 4.8 seconds of every command that needs torch."""
    subprocess.run([sys.executable, "-c", LOADING], check=True)


def tell_of_collection(folder: Path, number: int) -> None:
    (folder / str(number)).write_text(f"{gc.isenabled():d} {gc.get_freeze_count()}")


def test_workers_import_so_too_and_collect_once_they_work(tmp_path: Path):
    in_processes(tell_of_collection, ((tmp_path, number) for number in range(2)), 1, lambda: None)
    told = [(tmp_path / str(number)).read_text().split() for number in range(2)]
    (first, num_frozen), (second, num_frozen_later) = told
    assert first == second == "1"
    assert int(num_frozen) >= int(num_frozen_later) > 0, "a job's own objects are not frozen"
