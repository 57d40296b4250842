"""Fixtures that several unit tests share; a file may replace them by its own."""

import pytest

from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from tests.tiny_models import tiny_llava


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> ModelAdapter:
    """A tiny random LLaVA on the CPU."""
    return load_adapter(tiny_llava(tmp_path_factory.mktemp("llava"), seed=3), device="cpu")
