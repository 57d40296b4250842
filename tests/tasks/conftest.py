"""A server of files; a tiny model with a random RPN, and many questions to ask it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_contracts.profiles import ModelProfile
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.pipeline import ZoomPipeline
from tasks.asked_questions import Asked
from tests.file_server import FileServer, file_server
from tests.mixes import write_image
from tests.tasks.many_questions import NUM_QUESTIONS
from tests.tiny_models import tiny_llava
from tests.zoom_checks import random_pipeline


@pytest.fixture(scope="module")
def server() -> Iterator[FileServer]:
    """Whose files are added test by test."""
    with file_server() as running:
        yield running


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    return tiny_llava(tmp_path_factory.mktemp("llava"), seed=3)


@pytest.fixture(scope="module")
def pipeline(profile: ModelProfile) -> ZoomPipeline:
    return random_pipeline(load_adapter(profile, device="cpu"))


@pytest.fixture
def asked(tmp_path: Path) -> list[Asked]:
    """Two questions about each of six images."""
    for number in range(NUM_QUESTIONS // 2):
        write_image(tmp_path / f"{number}.png", number, (50 + number, 40))
    return [
        Asked(image=f"{tmp_path}/{number // 2}.png", question=text, id=str(number))
        for number, text in enumerate(["what is it ?", "red blue ?"] * (NUM_QUESTIONS // 2))
    ]
