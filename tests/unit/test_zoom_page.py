"""The example of docs/zoom.md runs as it is written."""

import re
from pathlib import Path

import pytest

from data_contracts.label_settings import RegionSettings
from data_contracts.training import TrainingConfig
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.rpn.training import train_rpn
from tasks.rpn_files import save_checkpoint
from tests.architecture.source_tree import CHECKOUT
from tests.rpn_scenes import bright_patch_examples, loader
from tests.tiny_models import tiny_llava
from tests.zoom_checks import random_images

PAGE = CHECKOUT / "docs" / "zoom.md"
MODEL = "llava-hf/llava-1.5-7b-hf"


def example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(code)


def test_the_example_is_short():
    assert len(example().splitlines()) <= 20


def test_the_example_answers_and_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """With a tiny model in place of the one it names."""
    profile = tiny_llava(tmp_path / "model", seed=3)
    adapter = load_adapter(profile, device="cpu")
    examples, images = bright_patch_examples(6)
    checkpoint = train_rpn(
        adapter,
        examples,
        loader(images),
        TrainingConfig(batch_size=3, learning_rate=1e-3),
        shape=profile.rpn,
        regions=RegionSettings.preset("default"),
        label_set="merge-labels/0123456789abcdef0123",
        micro_batch_size=4,
        cache_bytes=2**30,
    )
    save_checkpoint(checkpoint, tmp_path / "rpn")
    random_images([(90, 60)])[0].save(tmp_path / "scene.jpg")
    monkeypatch.chdir(tmp_path)
    code = example()
    assert MODEL in code
    exec(compile(code.replace(MODEL, profile.model_id), str(PAGE), "exec"), {})
    printed = capsys.readouterr().out
    assert printed.count("ms: {") == 2
    first_answer = printed.splitlines()[0].partition(" | ")[0]
    assert printed.endswith(first_answer)
