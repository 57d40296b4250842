"""A stage whose few files come all at once, after long work: how it is run, and its progress."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.enums import Stage
from tasks.artifacts.stage import FileShard, StageRun, run_stage


def run_working_stage(
    run: StageRun,
    stage: Stage,
    recipe: Recipe,
    names: Sequence[str],
    work: Callable[["WorkProgress"], dict[str, bytes]],
) -> ArtifactRef:
    """Make a stage whose shards are files; the work is done once, when the first is needed.

    Args:
        run: store and settings.
        stage: which it is.
        recipe: of the artifact.
        names: of the files, in the order of the shards.
        work: returns all files by name; told where to report its own steps.
    """
    progress = WorkProgress(stage, run.on_progress)

    @cache
    def files() -> dict[str, bytes]:
        return work(progress)

    def make_shard(index: int) -> FileShard:
        name = names[index]
        return FileShard(name, files()[name])

    return run_stage(replace(run, on_progress=progress.of_files), recipe, make_shard)


class WorkProgress:
    """Tells of the work in its own steps: the files are no steps of their own, and not told of.

    The last step is told of with the last file, since only then the stage is done.
    """

    def __init__(self, stage: Stage, tell: Callable[[str, int, int | None], None]) -> None:
        """Prepare; ``tell`` is told (stage, steps done, steps)."""
        self._stage = stage.value
        self._tell = tell
        self._begins_at = 0
        self._num_steps: int | None = None
        self._is_making = False

    def goes_on_from(self, num_done: int) -> None:
        """Steps that an earlier run did, if the work is to begin after them."""
        self._begins_at = num_done

    def of_work(self, num_done: int, num_steps: int) -> None:
        """Pass a step of the work on, and before the first one where it begins."""
        if self._num_steps is None and self._begins_at < num_steps:
            self._tell(self._stage, self._begins_at, num_steps)
        self._num_steps = num_steps
        if num_done < num_steps:
            self._tell(self._stage, num_done, num_steps)

    def of_files(self, stage: str, num_done: int, num_files: int | None) -> None:
        """Pass the end on; before, how many steps there are is for the work to say."""
        if num_done != num_files:
            self._is_making = True
            return
        total = self._num_steps or num_files
        if self._is_making and self._num_steps is None:  # work that had no steps left
            self._tell(stage, 0, total)
        self._tell(stage, total, total)
