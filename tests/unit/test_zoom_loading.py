"""Which model ``ZoomPipeline`` loads for an RPN, in which precision and at which commit."""

import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from sdrpn_core.models.devices import answering_dtype
from sdrpn_core.models.errors import ModelError
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from tests.rpn_checkpoints import imported_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> RpnCheckpoint:
    """Of half precision, for a model at a pinned commit."""
    return imported_checkpoint(tmp_path_factory.mktemp("llava"), dtype="bfloat16", revision=COMMIT)


def test_a_gpu_answers_in_the_rpns_precision_and_a_cpu_in_float32(
    checkpoint: RpnCheckpoint,
) -> None:
    """A 7B model in float32 fills a GPU that holds it twice over in bfloat16."""
    assert answering_dtype("bfloat16", torch.device("cuda", 1)) == "bfloat16"
    assert answering_dtype("float32", torch.device("cuda")) == "float32"
    assert answering_dtype("bfloat16", torch.device("cpu")) == "float32"
    assert ZoomPipeline.from_checkpoint(checkpoint, device="cpu").adapter.dtype is torch.float32


def test_a_precision_that_is_asked_for_is_taken(checkpoint: RpnCheckpoint) -> None:
    pipeline = ZoomPipeline.from_checkpoint(checkpoint, device="cpu", dtype="bfloat16")
    assert pipeline.adapter.dtype is pipeline.rpn.dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", ["half-ish", "nn", "int8"])
def test_an_unknown_precision_is_refused(checkpoint: RpnCheckpoint, dtype: str) -> None:
    with pytest.raises(ModelError, match="choose float32, bfloat16 or float16"):
        ZoomPipeline.from_checkpoint(checkpoint, device="cpu", dtype=dtype)


def test_a_pinned_commit_is_of_its_own_model_only(
    checkpoint: RpnCheckpoint, tmp_path: Path
) -> None:
    """Another repository has no such commit, or another model at it."""
    trained_beside = checkpoint.config.profile.model_id
    copy = shutil.copytree(trained_beside, tmp_path / "copy")
    for model, revision in ((trained_beside, COMMIT), (None, COMMIT), (str(copy), None)):
        pipeline = ZoomPipeline.from_checkpoint(checkpoint, model, device="cpu")
        assert pipeline.adapter.profile.revision == revision, model


def test_a_model_may_be_given_by_its_profiles_name(
    checkpoint: RpnCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub has no repository of that name."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"llava-hf/llava-1\.5-13b-hf"):
        ZoomPipeline.from_checkpoint(checkpoint, "llava-1.5-13b", device="cpu")


def test_an_rpn_from_elsewhere_says_so(checkpoint: RpnCheckpoint) -> None:
    name = checkpoint.config.profile.name
    assert checkpoint.config.origin == f"of {name}, trained elsewhere"


def test_answering_costs_what_the_rpn_was_made_for_unless_told_otherwise(tmp_path: Path) -> None:
    """A run could evaluate cheaper zooms, and whoever answered with its RPN had to know of it."""
    made = imported_checkpoint(tmp_path / "model")
    regions = made.config.regions.with_changes(crop_tokens=4, withdraw_image=True)
    checkpoint = replace(made, config=made.config.model_copy(update={"regions": regions}))
    own = ZoomPipeline.from_checkpoint(checkpoint, device="cpu")
    assert own.regions == regions
    changed = ZoomPipeline.beside(own.adapter, checkpoint, crop_tokens=9, withdraw_image=False)
    assert changed.regions == regions.with_changes(crop_tokens=9, withdraw_image=False)
    with pytest.raises(ModelError, match="at least 1"):
        ZoomPipeline.beside(own.adapter, checkpoint, crop_tokens=0)


def test_too_few_tokens_for_a_crop_are_refused_before_a_model_is_loaded(
    checkpoint: RpnCheckpoint,
) -> None:
    with pytest.raises(ModelError, match="crop_tokens is 0: give at least 1"):
        ZoomPipeline.from_checkpoint(checkpoint, "not/there", device="cpu", crop_tokens=0)
