"""How stages are executed: the same functions, in this process or as Prefect tasks.

A stage is either *whole* (one function that makes its artifact) or *sharded* (one function that
plans the artifact and one that makes a shard of it anywhere). Whatever crosses between processes is
small: settings, references, recipes, receipts.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any, TypeVar

from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.enums import Stage
from data_contracts.errors import SdrpnError
from data_contracts.runtime import RuntimeConfig
from data_contracts.settings_files import ConfigError
from flows.interrupts import raise_lost_interrupt
from flows.outcome import StageOutcome
from flows.worker_processes import in_processes
from tasks.artifacts.stage import ShardData, StageRun, begin_stage, finish_stage, run_shard
from tasks.artifacts.store import ArtifactStore
from tasks.loaded_model import release_model

T = TypeVar("T")

OnProgress = Callable[[str, int, int | None], None]
"""(stage, units done, units)."""
Whole = Callable[..., ArtifactRef]
"""(StageRun, *inputs) -> artifact."""
PlanRecipe = Callable[..., Recipe]
"""(StageRun, *inputs) -> recipe."""
MakeShard = Callable[..., ShardData]
"""(StageRun, recipe, shard index, *inputs) -> shard."""

ALWAYS_THERE = ("auto", "cpu")
"""Devices that are not worth waiting for torch."""


class WorkerLost(SdrpnError):
    """A worker process ended without an answer."""


class Execution(ABC):
    """Runs stages one after another and keeps what came of them."""

    def __init__(self, runtime: RuntimeConfig, forced: Collection[Stage] = ()) -> None:
        """Prepare.

        Args:
            runtime: store, device, batch size, workers.
            forced: stages to make anew even if they are committed.

        Raises:
            ConfigError: if the workers could not share the store.
        """
        self.runtime = runtime
        self.store = ArtifactStore.of(runtime)
        if (runtime.num_workers > 1 or runtime.ray) and not self.store.is_shared:
            raise ConfigError(
                f"store {runtime.store} lives in the memory of one process, so each worker would "
                "have its own: set num_workers (--workers) to 1 and leave ray out, or choose a "
                "folder or bucket"
            )
        self._forced = frozenset(forced)
        self.outcomes: list[StageOutcome] = []

    def whole(self, stage: Stage, function: Whole, *inputs: Any, label: str = "") -> ArtifactRef:
        """Run a stage that makes its artifact in one go."""
        return self._keep(self._whole(stage, label, function, inputs))

    def sharded(
        self, stage: Stage, plan: PlanRecipe, make: MakeShard, *inputs: Any, label: str = ""
    ) -> ArtifactRef:
        """Run a stage whose shards may be made side by side."""
        start = time.perf_counter()
        recipe, missing = self._begin(stage, label, plan, inputs)
        if missing:
            if self.runtime.num_workers > 1 or self.runtime.ray:
                release_model()  # an earlier stage's: workers would find it in their way
            try:
                self._make_shards(stage, label, recipe, missing, make, inputs)
            except BrokenProcessPool as error:
                raise WorkerLost(
                    f"a worker of {stage.value} was killed, probably for want of memory; what is "
                    "done is kept: run again with fewer workers or a smaller batch size"
                ) from error
        if missing is not None:
            self._finish(stage, label, recipe)
        return self._keep(
            StageOutcome(
                stage=stage,
                label=label,
                ref=recipe.ref,
                seconds=time.perf_counter() - start,
                is_reused=missing is None,
            )
        )

    def ask(self, stage: Stage, label: str, function: Callable[..., T], *inputs: Any) -> T:
        """Find out something that a stage's beginning depends on, which makes no artifact."""
        return function(*inputs)

    @abstractmethod
    def require_device(self) -> None:
        """Check that the runtime's device is there, if it is known on which machine stages run."""

    def is_forced(self, stage: Stage) -> bool:
        """Whether the stage is to be made anew."""
        return stage in self._forced

    def _keep(self, outcome: StageOutcome) -> ArtifactRef:
        self.outcomes.append(outcome)
        return outcome.ref

    @abstractmethod
    def _whole(
        self, stage: Stage, label: str, function: Whole, inputs: Sequence[Any]
    ) -> StageOutcome: ...

    @abstractmethod
    def _begin(
        self, stage: Stage, label: str, plan: PlanRecipe, inputs: Sequence[Any]
    ) -> tuple[Recipe, list[int] | None]: ...

    @abstractmethod
    def _make_shards(
        self,
        stage: Stage,
        label: str,
        recipe: Recipe,
        missing: Sequence[int],
        make: MakeShard,
        inputs: Sequence[Any],
    ) -> None: ...

    @abstractmethod
    def _finish(self, stage: Stage, label: str, recipe: Recipe) -> None: ...


class LocalExecution(Execution):
    """Everything in this process; shards in worker processes if the runtime asks for several."""

    def __init__(
        self,
        runtime: RuntimeConfig,
        forced: Collection[Stage] = (),
        on_progress: Callable[[Stage, str, int, int | None, str], None] | None = None,
    ) -> None:
        """Prepare; ``on_progress`` is told (stage, label, units done, units, part).

        The units are None as long as nothing is counted, or nobody knows how many there will be.
        The part is empty, or what the units are of if they are not the stage's own (MiB of a file
        that it fetches).
        """
        super().__init__(runtime, forced)
        if runtime.ray is not None:
            raise ConfigError(
                "runtime setting 'ray' needs Prefect: start `prefect server start`, set "
                "PREFECT_API_URL to its address, or leave 'ray' out"
            )
        self._on_progress = on_progress or (lambda *progress: None)

    def _run(self, stage: Stage, label: str) -> StageRun:
        def tell(of: str, num_done: int, num_units: int | None) -> None:
            part = "" if of == stage.value else of
            self._on_progress(stage, label, num_done, num_units, part)

        return stage_run(self.runtime, self.is_forced(stage), tell)

    def _tell_begun(self, stage: Stage, label: str) -> None:
        """It may be long before the stage can count anything."""
        self._on_progress(stage, label, 0, None, "")

    def require_device(self) -> None:
        """See ``Execution``.

        Raises:
            ModelError: if this machine does not have it.
        """
        device_map = self.runtime.device_map
        if device_map is not None:
            from tasks.models import require_device_map

            require_device_map(device_map)
        elif self.runtime.device not in ALWAYS_THERE:
            from tasks.models import require_device

            require_device(self.runtime.device)

    def _whole(
        self, stage: Stage, label: str, function: Whole, inputs: Sequence[Any]
    ) -> StageOutcome:
        self._tell_begun(stage, label)
        return run_whole(stage, label, function, self._run(stage, label), inputs)

    def _begin(
        self, stage: Stage, label: str, plan: PlanRecipe, inputs: Sequence[Any]
    ) -> tuple[Recipe, list[int] | None]:
        self._tell_begun(stage, label)
        return begin(plan, self._run(stage, label), inputs)

    def _make_shards(
        self,
        stage: Stage,
        label: str,
        recipe: Recipe,
        missing: Sequence[int],
        make: MakeShard,
        inputs: Sequence[Any],
    ) -> None:
        num_done = recipe.num_shards - len(missing)

        def tell() -> None:
            nonlocal num_done
            num_done += 1
            self._on_progress(stage, label, num_done, recipe.num_shards, "")

        if self.runtime.num_workers == 1:
            for index in missing:
                make_one(recipe, index, make, self.runtime, self.is_forced(stage), inputs)
                tell()
            return
        jobs = (
            (recipe, index, make, self.runtime, self.is_forced(stage), inputs) for index in missing
        )
        in_processes(make_one, jobs, self.runtime.num_workers, tell)

    def _finish(self, stage: Stage, label: str, recipe: Recipe) -> None:
        finish(recipe, self.runtime)


def stage_run(
    runtime: RuntimeConfig, force: bool = False, on_progress: OnProgress | None = None
) -> StageRun:
    """Where and how a stage runs; one that is tried again keeps it."""
    store = ArtifactStore.of(runtime)
    # What a Ctrl-C cut short, and a library then dropped, may look like a damaged image.
    run = StageRun(store, runtime, force, before_keeping=raise_lost_interrupt)
    return run if on_progress is None else replace(run, on_progress=on_progress)


def run_whole(
    stage: Stage, label: str, function: Whole, run: StageRun, inputs: Sequence[Any]
) -> StageOutcome:
    """Run a stage's function and time it."""
    start = time.perf_counter()
    started: list[Recipe] = []
    ref = function(replace(run, on_start=started.append), *inputs)
    return StageOutcome(
        stage=stage,
        label=label,
        ref=ref,
        seconds=time.perf_counter() - start,
        is_reused=not started,
    )


def begin(
    plan: PlanRecipe, run: StageRun, inputs: Sequence[Any]
) -> tuple[Recipe, list[int] | None]:
    """Plan a sharded stage: its recipe, and the shards to make (None if it is committed)."""
    recipe = plan(run, *inputs)
    return recipe, begin_stage(run, recipe)


def make_one(
    recipe: Recipe,
    index: int,
    make: MakeShard,
    runtime: RuntimeConfig,
    force: bool,
    inputs: Sequence[Any],
) -> None:
    """Make one shard, in whatever process this is; ``force`` keeps it from taking over old rows."""
    run = stage_run(runtime, force)
    run_shard(run, recipe, index, lambda i: make(run, recipe, i, *inputs))


def finish(recipe: Recipe, runtime: RuntimeConfig) -> None:
    """Commit a sharded stage."""
    finish_stage(stage_run(runtime), recipe)
