"""Training killed with SIGKILL in the middle, then resumed, ends with the same bytes."""

import subprocess
import sys
from pathlib import Path

import pytest

from sdrpn_core.rpn.checkpoint_files import CONFIG, METRICS, WEIGHTS

NUM_STEPS = 32


def start(model: Path, folder: Path, *stop: str) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    module = "tests.fault_injection.training_process"
    return subprocess.Popen(
        [sys.executable, "-m", module, str(model), str(folder), *stop],
        stdout=subprocess.PIPE,
        text=True,
    )


def run(model: Path, folder: Path) -> None:
    process = start(model, folder)
    process.communicate()
    assert process.returncode == 0


def kill_at(model: Path, folder: Path, point: str) -> None:
    process = start(model, folder, point)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == point
    process.kill()
    assert process.wait() == -9


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
