"""The GPU's tests on a device that stands in for it: no tensor is left on the CPU, in any family.

In processes of their own, as the stand-in changes torch for the whole process.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MIXED = """
import torch
import tests.stand_in_device
there, here = torch.ones(2, 3, device="elsewhere"), torch.ones(3)
assert (there + 1.0 + torch.tensor(2.0)).tolist() == [[4.0] * 3] * 2, "numbers come from anywhere"
assert there[torch.tensor([1])].device.type == "elsewhere", "so do indices"
index = torch.tensor([1], device="elsewhere")
for mix in (
    lambda: there + here,
    lambda: there @ here,
    lambda: torch.cat([there, here[None]]),
    lambda: torch.arange(3)[index],
    lambda: there.long().index_put_((index,), torch.tensor([7, 7, 7])),
):
    try:
        mix()
    except RuntimeError as error:
        assert "others on elsewhere:0" in str(error), error
    else:
        raise SystemExit("tensors of two devices were mixed")
try:
    there.numpy()
except TypeError:
    pass
else:
    raise SystemExit("NumPy looked into the device")
counts = torch.histc(there.int(), bins=3, min=0, max=2)
assert counts.dtype == torch.int32, "a GPU counts whole numbers"
assert counts.tolist() == [0, 6, 0]
assert torch.nn.functional.one_hot(index, 3).tolist() == [[0, 1, 0]]
there[:, [0, 2]] = 5
assert there.cpu().tolist() == [[5.0, 1.0, 5.0]] * 2
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_it_refuses_what_a_gpu_refuses() -> None:
    done = run("-c", MIXED)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a suite of its own, whose tests have the usual limit each
def test_everything_runs_on_another_device_as_on_the_cpu() -> None:
    """Code for the GPU went untested wherever there is none."""
    done = run("-m", "pytest", "-q", "-p", "tests.stand_in_device", "tests/gpu")
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed[1]) >= 60, done.stdout
