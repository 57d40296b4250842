"""A run that only looks: the same stages in the same order, as far as they are in the store.

Each stage is begun as a run begins it, so that what a plan calls done is what a run would take as
it is; where a run would start to make something, this one goes no further.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.configs import PipelineConfig
from data_contracts.enums import Stage
from data_contracts.errors import SdrpnError, root_cause
from data_contracts.runtime import RuntimeConfig
from flows.execution import ALWAYS_THERE, Execution, MakeShard, PlanRecipe, Whole
from flows.outcome import StageOutcome
from flows.wiring import Pipeline
from tasks.artifacts.stage import NotMade, StageRun, begin_stage
from tasks.fetching.transient import is_transient
from tasks.planning.made_so_far import MadeSoFar, begun, committed
from tasks.planning.model_files import pinned_as_planned
from tasks.planning.run_plan import Answers, RunPlan, ask_servers, impatient, planned_run
from tasks.planning.unread_sources import unread_sources

Key = tuple[Stage, str]


def plan_run(config: PipelineConfig, runtime: RuntimeConfig) -> RunPlan:
    """What a run would fetch, make and cost; nothing is fetched, made or written.

    Servers are given little time: what does not answer stays unknown.

    Raises:
        SdrpnError: if a file does not exist, or a run would stop at what is in the store.
    """
    LookingExecution(runtime).require_device()
    quick = impatient(runtime)
    answers = ask_servers(config, quick)
    return planned_run(config, runtime, answers, _made(config, quick, answers))


def _made(
    config: PipelineConfig, runtime: RuntimeConfig, answers: Answers
) -> Mapping[Key, MadeSoFar]:
    """What of every stage is in the store."""
    looking = LookingExecution(runtime)
    unread = unread_sources(config, looking.store, answers.by_source)
    looking.found.update({(Stage.DOWNLOAD, name): made for name, made in unread.items()})
    pipeline = Pipeline(config, looking, partial(pinned_as_planned, planned=answers.model))
    for find in pipeline.artifacts():
        with suppress(NotMade):
            find()
    return looking.found


class LookingExecution(Execution):
    """Finds out how much of each artifact is there, and makes none."""

    def __init__(self, runtime: RuntimeConfig) -> None:
        super().__init__(runtime)
        self.found: dict[Key, MadeSoFar] = {}
        """By stage and label; what is in here is not looked for again."""

    def require_device(self) -> None:
        """See ``Execution``; nothing is run here, so that any machine's will do.

        Raises:
            UnknownChoice: if none has such a device.
        """
        if self.runtime.device_map is not None or self.runtime.device not in ALWAYS_THERE:
            from tasks.models import require_device_names

            require_device_names(self.runtime)

    def _whole(
        self, stage: Stage, label: str, function: Whole, inputs: Sequence[Any]
    ) -> StageOutcome:
        recipe = self._look((stage, label), lambda run: function(run, *inputs))
        return StageOutcome(stage=stage, label=label, ref=recipe.ref, seconds=0.0, is_reused=True)

    def _begin(
        self, stage: Stage, label: str, plan: PlanRecipe, inputs: Sequence[Any]
    ) -> tuple[Recipe, list[int] | None]:
        def begin(run: StageRun) -> ArtifactRef:
            recipe = plan(run, *inputs)
            begin_stage(run, recipe)
            return recipe.ref

        return self._look((stage, label), begin), None

    def _look(self, key: Key, find: Callable[[StageRun], ArtifactRef]) -> Recipe:
        """The recipe of an artifact that is committed.

        Raises:
            NotMade: if not, also when it is looked for once more.
            SdrpnError: at what would stop a run.
        """
        if key not in self.found:
            try:
                self.found[key] = self._made_so_far(find)
            except (SdrpnError, OSError) as error:
                if not is_transient(error):
                    raise
                self.found[key] = MadeSoFar(problem=root_cause(error))
        manifest = self.found[key].manifest
        if manifest is None:
            raise NotMade(f"{' '.join(key).strip()}: is still to be made")
        return manifest.recipe

    def _made_so_far(self, find: Callable[[StageRun], ArtifactRef]) -> MadeSoFar:
        try:
            ref = find(StageRun(self.store, self.runtime, only_looks=True))
        except NotMade as error:
            return MadeSoFar() if error.recipe is None else begun(self.store, error.recipe)
        return committed(self.store, ref)

    def _make_shards(
        self,
        stage: Stage,
        label: str,
        recipe: Recipe,
        missing: Sequence[int],
        make: MakeShard,
        inputs: Sequence[Any],
    ) -> None:
        raise AssertionError("a run that only looks makes no shards")

    def _finish(self, stage: Stage, label: str, recipe: Recipe) -> None:
        raise AssertionError("a run that only looks commits nothing")
