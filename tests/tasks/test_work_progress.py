import pytest

from data_contracts.enums import Stage
from tasks.work_progress import WorkProgress


@pytest.fixture
def told() -> list[tuple[int, int | None]]:
    return []


@pytest.fixture
def progress(told: list[tuple[int, int | None]]) -> WorkProgress:
    return WorkProgress(Stage.TRAIN_RPN, lambda stage, *counted: told.append(counted))


def make_files(progress: WorkProgress) -> None:
    for num_done in range(5):
        progress.of_files("train-rpn", num_done, 4)


def test_work_is_told_from_where_it_begins(
    progress: WorkProgress, told: list[tuple[int, int | None]]
):
    """A log took the first step for one that an earlier run had done."""
    progress.of_files("train-rpn", 0, 4)
    progress.goes_on_from(7)
    for step in (8, 9):
        progress.of_work(step, 9)
    make_files(progress)
    assert told == [(7, 9), (8, 9), (9, 9)]


def test_work_without_a_step_left_begins_and_ends(
    progress: WorkProgress, told: list[tuple[int, int | None]]
):
    """Else it looks as if it had been committed before."""
    make_files(progress)
    assert told == [(0, 4), (4, 4)]


def test_what_was_committed_before_only_ends(
    progress: WorkProgress, told: list[tuple[int, int | None]]
):
    progress.of_files("train-rpn", 4, 4)
    assert told == [(4, 4)]


def test_the_end_is_told_once(progress: WorkProgress, told: list[tuple[int, int | None]]):
    """A training that was stopped after its last step has none left to go on from."""
    progress.goes_on_from(9)
    progress.of_work(9, 9)
    make_files(progress)
    assert told == [(9, 9)]
