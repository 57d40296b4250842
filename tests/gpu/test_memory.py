"""Nothing is kept from step to step: as much is allocated after a late step as after an early one.

The same loops on models of real size: ``python -m benchmarks.long_runs --model qwen2.5-vl-7b``.
"""

from argparse import Namespace

import pytest
import torch

from benchmarks.long_runs import Run, extraction, training, zoom
from benchmarks.random_llava import random_llava

NUM_STEPS, NUM_SETTLING = 12, 4


@pytest.mark.parametrize("run", [extraction, training, zoom], ids=lambda run: run.__name__)
def test_steps_leave_no_memory_behind(cuda: str, run: Run) -> None:
    adapter = random_llava(device=cuda, dtype=torch.bfloat16)
    held: list[int] = []
    given = Namespace(steps=NUM_STEPS, batch_size=2, max_new_tokens=3)
    run(adapter, given, lambda: held.append(torch.cuda.memory_allocated()))
    assert len(held) >= NUM_STEPS
    one_image = 576 * 512 * 2
    assert held[-1] - held[NUM_SETTLING] < one_image, held
