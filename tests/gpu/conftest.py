"""Tiny models on the GPU, in the precisions that real runs use.

Where there is none, ``-p tests.stand_in_device`` runs what needs no CUDA but another device.
"""

from pathlib import Path

import pytest
import torch

from data_contracts.profiles import ModelProfile
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from tests.tiny_models import tiny_llava

STAND_IN = "tests.stand_in_device"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the device."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True, scope="session")
def _convolutions_in_full_precision() -> None:
    """What is compared with the CPU is computed as there: TensorFloat-32 keeps ten bits."""
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    """Where models go that are not to be on the CPU."""
    stand_in = pytestconfig.pluginmanager.get_plugin(STAND_IN)
    if stand_in is not None:
        return str(stand_in.NAME)
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return "cuda"


@pytest.fixture(scope="session")
def cuda(device: str) -> str:
    """The device, where it is a GPU: for graphs and memory."""
    if device != "cuda":
        pytest.skip("needs a CUDA device")
    return device


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    return tiny_llava(tmp_path_factory.mktemp("tiny_llava"), seed=3)


@pytest.fixture(scope="session")
def full(device: str, profile: ModelProfile) -> ModelAdapter:
    """In float32."""
    return load_adapter(profile, device=device)


@pytest.fixture(scope="session")
def half(device: str, profile: ModelProfile) -> ModelAdapter:
    """In bfloat16."""
    return load_adapter(profile, device=device, dtype="bfloat16")
