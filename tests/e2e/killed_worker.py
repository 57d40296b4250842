"""A program that loses a worker in the middle of a shard: STORE [flow [speaking]].

With ``flow`` its stage is that of a Prefect flow; with ``speaking`` the worker is lost while it
tells the flow of a log line or an event. Should it ever hang, it ends by itself and says where
every thread was.
"""

import faulthandler
import gc
import os
import signal
import sys
from multiprocessing.queues import Queue

from data_contracts.artifact import Recipe
from data_contracts.enums import Stage
from data_contracts.runtime import RuntimeConfig
from flows.execution import Execution, LocalExecution, WorkerLost
from tasks.artifacts.stage import FrameShard, StageRun
from tests.artifacts import make_source_shard, source_recipe


def plan(run: StageRun) -> Recipe:
    return source_recipe(3)


def make(run: StageRun, recipe: Recipe, index: int) -> FrameShard:
    if index == 1:
        if "speaking" in sys.argv:
            _begin_to_speak()
        os.kill(os.getpid(), signal.SIGKILL)
    return make_source_shard(index)


def _begin_to_speak() -> None:
    """Take what a worker holds while it writes its logs and events to the pipe of all workers."""
    for queue in gc.get_objects():
        if type(queue) is Queue:  # the pool's own is of another kind, and workers only read it
            queue._wlock.acquire()


def run(kind: type[Execution]) -> None:
    kind(RuntimeConfig(store=sys.argv[1], num_workers=2)).sharded(Stage.DOWNLOAD, plan, make)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(240, exit=True)
    try:
        if "flow" in sys.argv:
            from prefect import flow

            from flows.prefect_execution import PrefectExecution

            flow(name="killed-worker")(run)(PrefectExecution)
        else:
            run(LocalExecution)
    except WorkerLost as error:
        sys.exit(f"told: {error}")
