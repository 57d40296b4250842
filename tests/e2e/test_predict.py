"""``sdrpn predict``: the store's newest RPN answers a question, or the error says what to do."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from tests.mixes import write_image
from tests.pipelines import write_tiny_pipeline

pytestmark = pytest.mark.timeout(600)


def sdrpn(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    write_tiny_pipeline(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        options = ("--config", folder / "config.yaml", "--store", folder / "store")
        result = sdrpn("stage", "train-rpn", *options)
    assert result.exit_code == 0, result.output
    write_image(folder / "picture.png", 7)
    return folder


def test_answers_with_the_newest_rpn_and_draws_it(folder: Path) -> None:
    image, overlay = folder / "picture.png", folder / "overlay.png"
    options = ("--store", folder / "store", "--overlay", overlay, "--json")
    result = sdrpn("predict", image, "what is it ?", *options)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    size = Image.open(image).size
    assert Image.open(overlay).size == size
    assert answer["used_crop"] == bool(answer["boxes"])
    for x0, y0, x1, y1 in answer["boxes"]:
        assert 0 <= x0 < x1 <= size[0]
        assert 0 <= y0 < y1 <= size[1]


def test_a_store_without_an_rpn_is_explained(folder: Path) -> None:
    store = folder / "empty"
    result = sdrpn("predict", folder / "picture.png", "what is it ?", "--store", store)
    assert result.exit_code == 2
    assert "no trained RPN" in result.output
    assert "sdrpn run" in result.output


def test_a_missing_image_is_explained(folder: Path) -> None:
    result = sdrpn("predict", folder / "no.png", "what is it ?", "--store", folder / "store")
    assert result.exit_code == 2
    assert "no such image" in result.output
