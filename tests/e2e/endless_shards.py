"""A program whose shards never end, so that only Ctrl-C ends it: STORE [at-start].

With ``at-start`` it sends itself the Ctrl-C while it hands the shards to its workers.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from data_contracts.artifact import Recipe
from data_contracts.enums import Stage
from data_contracts.runtime import RuntimeConfig
from flows.console import ProgressDisplay
from flows.execution import LocalExecution, PlanRecipe
from tasks.artifacts.stage import FrameShard, StageRun
from tests.artifacts import source_recipe

NUM_SHARDS = 4


def plan(run: StageRun) -> Recipe:
    return source_recipe(NUM_SHARDS)


def never_end(run: StageRun, recipe: Recipe, index: int) -> FrameShard:
    run.store.storage.put(f"begun/{index}", b"")
    while True:
        threading.Event().wait()


class Interrupting(list[int]):
    """Shards of which all but the first come after a Ctrl-C."""

    def __iter__(self) -> Iterator[int]:
        for index in super().__iter__():
            yield index
            if index == 0:
                os.kill(os.getpid(), signal.SIGINT)


class InterruptedAtStart(LocalExecution):
    """An execution that is interrupted when its first worker has been started."""

    def _begin(
        self, stage: Stage, label: str, plan: PlanRecipe, inputs: Sequence[Any]
    ) -> tuple[Recipe, list[int] | None]:
        recipe, missing = super()._begin(stage, label, plan, inputs)
        assert missing is not None
        return recipe, Interrupting(missing)


if __name__ == "__main__":
    kind = InterruptedAtStart if sys.argv[2:] == ["at-start"] else LocalExecution
    runtime = RuntimeConfig(store=sys.argv[1], num_workers=2)
    try:
        with ProgressDisplay(Console(stderr=True)) as display:
            kind(runtime, (), display).sharded(Stage.DOWNLOAD, plan, never_end)
    except KeyboardInterrupt:
        sys.exit(130)
