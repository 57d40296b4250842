"""Training killed with SIGKILL in the middle, then resumed, ends with the same bytes."""

from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from sdrpn_core.rpn.checkpoint_files import CONFIG, METRICS, WEIGHTS
from tests.fault_injection.processes import CONTEXT
from tests.fault_injection.training_process import train

NUM_STEPS = 32


def start(model: Path, folder: Path, stop: str | None = None) -> tuple[BaseProcess, Connection]:
    """A training and where it tells that it has come to the stop."""
    folder.mkdir(exist_ok=True)
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=train, args=(model, folder, stop, sender))
    process.start()
    sender.close()
    return process, receiver


def run(model: Path, folder: Path) -> None:
    process, _ = start(model, folder)
    process.join()
    assert process.exitcode == 0


def kill_at(model: Path, folder: Path, point: str) -> None:
    process, told = start(model, folder, point)
    assert told.recv() == point
    process.kill()
    process.join()
    assert process.exitcode == -9


def steps(folder: Path) -> list[int]:
    """Optimiser steps in the order they were taken, over all processes."""
    return [int(line) for line in (folder / "steps.txt").read_text().split()]


@pytest.mark.slow
def test_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    model, whole, cut = tmp_path / "model", tmp_path / "whole", tmp_path / "cut"
    run(model, whole)
    assert steps(whole) == list(range(1, NUM_STEPS + 1))

    kill_at(model, cut, "step-8")  # two steps after a resume point
    kill_at(model, cut, "save-21")  # half way through writing one
    assert not (cut / WEIGHTS).exists()
    run(model, cut)
    redone = [*range(1, 9), *range(7, 22), *range(19, NUM_STEPS + 1)]
    assert steps(cut) == redone, "each process must go on from the last complete resume point"

    for name in (WEIGHTS, METRICS, CONFIG):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
