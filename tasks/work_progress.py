"""Progress of a stage whose few files come all at once, after long work."""

from collections.abc import Callable

from data_contracts.enums import Stage


class WorkProgress:
    """Tells of the work in its own steps: the files are no steps of their own.

    The last step is told of with the last file, since only then the stage is done.
    """

    def __init__(self, stage: Stage, tell: Callable[[str, int, int], None]) -> None:
        """Prepare; ``tell`` is told (stage, steps done, steps)."""
        self._stage = stage.value
        self._tell = tell
        self._num_steps: int | None = None

    def of_work(self, num_done: int, num_steps: int) -> None:
        """Pass a step of the work on."""
        self._num_steps = num_steps
        if num_done < num_steps:
            self._tell(self._stage, num_done, num_steps)

    def of_files(self, stage: str, num_done: int, num_files: int) -> None:
        """Pass the beginning and the end on."""
        total = self._num_steps or num_files
        if num_done in (0, num_files):
            self._tell(stage, total if num_done else 0, total)
