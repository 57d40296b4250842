"""Stages as Prefect tasks: retries, logs, progress and artifacts in its UI.

Prefect never decides whether something is done already: every task is ``NO_CACHE`` and persists
nothing; manifests in the artifact store decide. Results are small (references, recipes).
"""

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast
from uuid import UUID

from prefect import Task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import as_completed
from prefect.logging import get_run_logger

from data_contracts.artifact import Recipe
from data_contracts.enums import Stage
from data_contracts.errors import one_line
from flows.execution import (
    Execution,
    MakeShard,
    PlanRecipe,
    Whole,
    begin,
    finish,
    make_one,
    run_whole,
    stage_run,
)
from flows.interrupts import interrupts_held
from flows.outcome import StageOutcome
from flows.task_runners import shard_runner
from tasks.fetching.transient import is_transient

T = TypeVar("T")

_SECONDS_BETWEEN_REPORTS = 5.0
_SECONDS_OF_REST = 300.0
"""Before a server that did not answer is told again: each try takes more than a minute."""
_KEY_SEPARATORS = re.compile("[^a-z0-9]+")
"""Prefect's artifact keys are lower-case letters, digits and dashes; labels are free text."""


class PrefectExecution(Execution):
    """Every stage, and every shard of a sharded stage, as a task of the running flow."""

    def ask(self, stage: Stage, label: str, function: Callable[..., T], *inputs: Any) -> T:
        """See ``Execution``."""
        answer: T = _task(function, stage, label)(*inputs)
        return answer

    def require_device(self) -> None:
        """See ``Execution``; tasks may run on machines with other devices than this one."""

    def _whole(
        self, stage: Stage, label: str, function: Whole, inputs: Sequence[Any]
    ) -> StageOutcome:
        run = stage_run(self.runtime, self.is_forced(stage), ProgressReport(stage, label))

        def attempt() -> StageOutcome:  # again and again, of the same run
            return run_whole(stage, label, function, run, inputs)

        outcome: StageOutcome = _task(attempt, stage, label)()
        return outcome

    def _begin(
        self, stage: Stage, label: str, plan: PlanRecipe, inputs: Sequence[Any]
    ) -> tuple[Recipe, list[int] | None]:
        run = stage_run(self.runtime, self.is_forced(stage))

        def attempt() -> tuple[Recipe, list[int] | None]:
            return begin(plan, run, inputs)

        planned: tuple[Recipe, list[int] | None] = _task(attempt, stage, f"{label} plan")()
        return planned

    def _make_shards(
        self,
        stage: Stage,
        label: str,
        recipe: Recipe,
        missing: Sequence[int],
        make: MakeShard,
        inputs: Sequence[Any],
    ) -> None:
        report = ProgressReport(stage, label)
        with shard_runner(self.runtime) as runner:
            with interrupts_held():  # the workers are started here
                futures = [
                    runner.submit(
                        _task(make_one, stage, f"{label} {index + 1} of {recipe.num_shards}"),
                        {
                            "recipe": recipe,
                            "index": index,
                            "make": make,
                            "runtime": self.runtime,
                            "force": self.is_forced(stage),
                            "inputs": inputs,
                        },
                    )
                    for index in missing
                ]
            num_done = recipe.num_shards - len(missing)
            for future in as_completed(futures):
                future.result()
                num_done += 1
                report(stage.value, num_done, recipe.num_shards)

    def _finish(self, stage: Stage, label: str, recipe: Recipe) -> None:
        _task(finish, stage, f"{label} commit")(recipe, self.runtime)


class ProgressReport:
    """Progress of one stage as log lines and a progress artifact, a few a minute.

    What else is counted during a stage, say the MiB of a file that it fetches, is logged only: the
    artifact is the stage's.
    """

    def __init__(self, stage: Stage, label: str) -> None:
        self._stage = stage.value
        self._name = f"{stage.value} {label}".strip()
        self._key = _KEY_SEPARATORS.sub("-", self._name.lower()).strip("-")
        self._artifact: UUID | None = None
        self._reported_at = 0.0
        self._rests_until = 0.0

    def __call__(self, of: str, num_done: int, num_units: int | None) -> None:
        """Report, unless the last report was moments ago and this is not the end.

        Args:
            of: the stage, whose units are shards or steps; or units of another kind.
            num_done: units.
            num_units: in all; None if that is not known.
        """
        now = time.monotonic()
        is_end = num_done == num_units
        if not is_end and now - self._reported_at < _SECONDS_BETWEEN_REPORTS:
            return
        self._reported_at = now
        unit = "" if of == self._stage else f" {of}"
        if num_units is None:
            get_run_logger().info("%s: %d%s", self._name, num_done, unit)
            return
        get_run_logger().info("%s: %d of %d%s", self._name, num_done, num_units, unit)
        if unit or now < self._rests_until:
            return
        try:
            self._show(100.0 * num_done / max(num_units, 1))
        except Exception as error:
            if not is_transient(error):
                raise
            # The work must not stop for want of a server to tell, nor wait for it at every report.
            self._rests_until = time.monotonic() + _SECONDS_OF_REST
            get_run_logger().warning("%s: progress is not shown (%s)", self._name, one_line(error))

    def _show(self, share: float) -> None:
        if self._artifact is None:
            created = create_progress_artifact(share, key=self._key, description=self._name)
            self._artifact = cast(UUID, created)
        else:
            update_progress_artifact(self._artifact, share, description=self._name)


def _task(function: Callable[..., Any], stage: Stage, label: str) -> Any:
    return Task(
        function,
        name=stage.value,
        task_run_name=f"{stage.value} {label}".strip(),
        tags={f"stage:{stage.value}"},
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=3,
        retry_delay_seconds=[2, 15, 60],
        retry_condition_fn=_may_go_away,
    )


def _may_go_away(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    error = state.data
    return isinstance(error, BaseException) and is_transient(error)
