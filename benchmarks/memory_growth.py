"""Memory of the stages that hold many rows: ``python -m benchmarks.memory_growth``.

Every size of every stage is measured in a process of its own, so that each peak is its own; memory
is what comes on top of the imports. ``--stages`` chooses from:

* ``given``: conversations gathered for extraction from the data set's own answers, all shares;
* ``training``: labels split into training and validation, and one epoch of batches of them;
* ``merge``: two label artifacts, a tenth of which occur in both, become one label set.

``python -m benchmarks.build_rate`` does the same for building questions.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from typing import Any

from benchmarks.build_rate import in_own_process, measure_build, peak_mib, prepare
from benchmarks.generated_labels import write_overlapping
from data_contracts.artifact import ArtifactRef
from data_contracts.enums import Stage
from data_contracts.runtime import RuntimeConfig
from data_contracts.training import TrainingConfig
from sdrpn_core.rpn.data import (
    epoch_batch,
    examples_digest,
    num_batches_per_epoch,
    split_examples,
)
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.given_responses import conversations
from tasks.merge_labels import merge_labels
from tasks.train_rpn import training_examples

ROWS_PER_RECORD = 3.8
"""Turns of a record of the generated mix, on average."""
ROWS_PER_SHARE = 256


def measure_given(root: str, questions: ArtifactRef) -> dict[str, Any]:
    """All shares, one after another, as one process of extraction reads them."""
    before, start = peak_mib(), time.process_time()
    store = ArtifactStore(root)
    num_shares = -(-store.manifest(questions).num_rows // ROWS_PER_SHARE)
    num_rows = 0
    for index in range(num_shares):
        num_rows += sum(map(len, conversations(store, questions, num_shares, index)))
    return found(num_rows, start, before)


def measure_training(root: str, label_set: ArtifactRef) -> dict[str, Any]:
    """The labels as training reads them, without the model."""
    before, start = peak_mib(), time.process_time()
    config = TrainingConfig()
    split = split_examples(training_examples(ArtifactStore(root), label_set), config)
    examples_digest(chain(split.train, split.validation))
    num_train = len(split.train)
    for place in range(num_batches_per_epoch(num_train, config.batch_size)):
        for index in epoch_batch(num_train, config.batch_size, config.seed, 0, place):
            assert split.train[index].num_valid_cells
    return found(split.sizes.num_examples, start, before)


def measure_merge(root: str, labels: list[ArtifactRef]) -> dict[str, Any]:
    """The whole stage."""
    before, start = peak_mib(), time.process_time()
    store = ArtifactStore(root)
    label_set = merge_labels(StageRun(store, RuntimeConfig()), labels)
    return found(store.manifest(label_set).num_rows, start, before)


def found(num_rows: int, start: float, before: float) -> dict[str, Any]:
    """What one measurement prints."""
    seconds = time.process_time() - start
    return {"rows": num_rows, "CPU s": round(seconds, 1), "MiB": round(peak_mib() - before)}


def build_questions(folder: str, num_rows: int) -> ArtifactRef:
    """Questions of a generated mix, every turn."""
    measure_build(folder, prepare(folder, int(num_rows / ROWS_PER_RECORD)))
    (artifact,) = ArtifactStore(f"{folder}/store").storage.folders(Stage.BUILD_JSONL.value)
    return ArtifactRef(stage=Stage.BUILD_JSONL, artifact_id=artifact)


def given(folder: str, num_rows: int) -> dict[str, Any]:
    questions = build_questions(folder, num_rows)
    return in_own_process(measure_given, f"{folder}/store", questions)


def training(folder: str, num_rows: int) -> dict[str, Any]:
    run = StageRun(ArtifactStore(folder), RuntimeConfig())
    label_set = merge_labels(run, write_overlapping(folder, num_rows))
    return in_own_process(measure_training, folder, label_set)


def merging(folder: str, num_rows: int) -> dict[str, Any]:
    return in_own_process(measure_merge, folder, write_overlapping(folder, num_rows))


STAGES: dict[str, Callable[[str, int], dict[str, Any]]] = {
    "given": given,
    "training": training,
    "merge": merging,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 80_000, 320_000])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    options = parser.parse_args()
    print(f"{'stage':>8} | {'rows':>8} | {'CPU s':>6} | {'MiB':>5}", flush=True)
    for name in options.stages:
        for num_rows in options.rows:
            with tempfile.TemporaryDirectory() as folder:
                row = STAGES[name](folder, num_rows)
            cells = f"{row['rows']:>8} | {row['CPU s']:>6} | {row['MiB']:>5}"
            print(f"{name:>8} | {cells}", flush=True)


if __name__ == "__main__":
    main()
