"""Profiles and files that do not fit a family's model are refused in one line that says why."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from data_contracts.profiles import ImageSettings, ModelProfile, RpnShape
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.rpn.network import RegionProposalNetwork
from tests.tiny_models import tiny_llava
from tests.tiny_qwen import IMAGES, tiny_qwen2_5_vl, tiny_qwen3_vl

HUB_PROCESSORS: dict[str, dict[str, Any]] = {
    "Qwen2.5-VL": {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    },
    "Qwen3-VL": {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
    },
}


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    return tiny_qwen3_vl(tmp_path_factory.mktemp("qwen3_vl"))


@pytest.fixture(scope="module")
def qwen2_5(tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    return tiny_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl"))


def test_branch_inside_the_deepstack_layers_is_refused(qwen3: ModelProfile) -> None:
    early = qwen3.model_copy(update={"rpn": RpnShape(branch_layer=1, depth=3)})
    with pytest.raises(ModelError, match=r"branches off at layer 1.*branch_layer to at least 2"):
        load_adapter(early, device="cpu")
    adapter = load_adapter(qwen3, device="cpu")
    with pytest.raises(ModelError, match="at least 2"):
        RegionProposalNetwork.from_adapter(adapter, early.rpn)


def test_grid_rules_are_wanted_or_refused_by_family(qwen2_5: ModelProfile, tmp_path: Path) -> None:
    bare = qwen2_5.model_copy(update={"images": ImageSettings()})
    with pytest.raises(ModelError, match=r"gives no grid rule: set images.labels"):
        load_adapter(bare, device="cpu")
    ruled = tiny_llava(tmp_path).model_copy(update={"images": IMAGES})
    with pytest.raises(ModelError, match=r"one fixed grid: remove images.labels"):
        load_adapter(ruled, device="cpu")


def test_image_processor_of_another_model_is_refused(qwen2_5: ModelProfile, tmp_path: Path) -> None:
    for file in Path(qwen2_5.model_id).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config | {"patch_size": 8}))
    foreign = qwen2_5.model_copy(update={"model_id": str(tmp_path)})
    with pytest.raises(ModelError, match="patches of 8 pixels merged 2 x 2, the model wants 4"):
        load_adapter(foreign, device="cpu")


@pytest.mark.parametrize("name", sorted(HUB_PROCESSORS))
def test_processor_files_of_the_hub_load_without_torchvision(name: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HUB_PROCESSORS[name]))
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert isinstance(processor, Qwen2VLImageProcessorPil)
    assert processor.patch_size == HUB_PROCESSORS[name]["patch_size"]


@pytest.mark.parametrize("size", [(1, 700), (900, 2), (1, 1)])
def test_extreme_shapes_are_encoded_within_the_cell_budget(
    qwen2_5: ModelProfile, size: tuple[int, int]
) -> None:
    """The stock processor refuses an aspect ratio above 200."""
    (features,) = load_adapter(qwen2_5, device="cpu").encode_images([Image.new("RGB", size)])
    assert features.tokens.shape[0] == features.grid.num_cells
    assert features.letterbox.content_mask(features.grid).any()
