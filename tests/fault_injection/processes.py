"""What other processes run in these tests."""

import os
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from tasks.artifacts.stage import FileShard, FrameShard, run_stage
from tasks.artifacts.store import ArtifactStore
from tests.artifacts import files_recipe, make_source_shard, source_recipe, stage_run

# Processes fork from a clean server that has these imports, so starting one takes milliseconds.
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__, "tests.fault_injection.flow_process"])


def write_slowly(root: str, options: dict[str, Any], num_shards: int, answer: Connection) -> None:
    """Run the small stage, a little time between its shards; send how many are done."""

    def make_shard(index: int) -> FrameShard:
        time.sleep(0.003)
        return make_source_shard(index)

    run = stage_run(
        ArtifactStore(root, options), on_progress=lambda stage, done, total: answer.send(done)
    )
    run_stage(run, source_recipe(num_shards), make_shard)


def write_own_bytes(
    root: str, options: dict[str, Any], num_shards: int, start: Any, answer: Connection
) -> None:
    """Run a stage whose files differ from process to process; send the manifest it ends with."""
    store = ArtifactStore(root, options)
    start.wait()

    def make_shard(index: int) -> FileShard:
        return FileShard(f"part-{index}", f"{index} of {os.getpid()}".encode() * 100)

    ref = run_stage(stage_run(store), files_recipe(num_shards), make_shard)
    answer.send(store.manifest(ref).model_dump_json())
