"""What is particular to Gemma: shapes of grids, windows, soft caps, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoConfig,
    Gemma4ForConditionalGeneration,
    Gemma4UnifiedForConditionalGeneration,
    PreTrainedModel,
)
from transformers.models.gemma4.image_processing_pil_gemma4 import (
    Gemma4ImageProcessorPil,
    get_aspect_ratio_preserving_size,
)

from data_contracts.profiles import DynamicGrid, ModelProfile
from sdrpn_core.attention.kernels import SDPA
from sdrpn_core.attention.patterns import CAUSAL, AttentionPattern
from sdrpn_core.calibration.draft import draft_profile
from sdrpn_core.generation.greedy import prefill
from sdrpn_core.generation.prompt_batch import pad_left
from sdrpn_core.geometry import GridShape
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.dimensions import model_dimensions
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.gemma import GRIDS
from sdrpn_core.models.gemma3 import Gemma3Adapter
from sdrpn_core.models.gemma4 import Gemma4Adapter
from sdrpn_core.models.gemma4_unified import Gemma4UnifiedAdapter
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.profiles import load_profile
from sdrpn_core.models.stretched import MAX_ASPECT_RATIO
from tests.families.registry import FAMILY_MODELS, stock_inputs
from tests.tiny_gemma import WINDOW, tiny_gemma3, tiny_gemma4_of, tiny_gemma4_unified
from tests.zoom_checks import encode_crops


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    return tiny_gemma4_unified(tmp_path_factory.mktemp("gemma4"))


@pytest.fixture(scope="module")
def families(
    profile: ModelProfile, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ModelProfile]:
    tower = tiny_gemma4_of(tmp_path_factory.mktemp("dense"), {})
    return {"gemma4": tower, "gemma4_unified": profile}


@pytest.fixture(scope="module")
def gemma4(profile: ModelProfile) -> ModelAdapter:
    return load_adapter(profile, device="cpu")


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> ModelAdapter:
    return load_adapter(tiny_gemma3(tmp_path_factory.mktemp("gemma3")), device="cpu")


def test_layers_with_and_without_a_window_see_images_as_the_model_was_trained(
    gemma3: ModelAdapter, gemma4: ModelAdapter
) -> None:
    windowed = AttentionPattern(WINDOW, whole_images=True)
    assert gemma4.decoder.patterns == {windowed, CAUSAL}
    assert gemma3.decoder.patterns == {windowed, AttentionPattern(whole_images=True)}


def test_flash_attn_is_not_asked_for_what_is_not_causal(
    gemma4: ModelAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would see too much through windows, and too little of images."""
    monkeypatch.setattr("sdrpn_core.decoding.decoder.flash_is_usable", lambda: True)
    monkeypatch.setattr("sdrpn_core.decoding.decoder.choose_kernel", pytest.fail)
    assert gemma4.decoder.attention_kernel == SDPA


@given(st.integers(1, 4000), st.integers(1, 4000))
@settings(deadline=None, max_examples=300)
def test_grids_are_those_of_the_stock_processor(width: int, height: int) -> None:
    """At the model's own numbers: cells of 48 pixels, 560 of them; longer strips are padded."""
    if max(width, height) > 100 * min(width, height):
        return
    processor = Gemma4ImageProcessorPil()
    adapter = object.__new__(Gemma4UnifiedAdapter)
    adapter.cell_side = processor.patch_size * processor.pooling_kernel_size
    adapter.label_grid, adapter.answer_grid = GRIDS.labels, GRIDS.answers  # type: ignore[assignment]
    adapter.fill, adapter.resample = (0, 0, 0), Image.Resampling.NEAREST
    letterbox = adapter.letterbox((width, height))
    found = adapter._grid_within(letterbox, adapter.answer_grid, 560)
    wanted = get_aspect_ratio_preserving_size(height, width, 16, 560 * 9, 3)
    assert found == GridShape(wanted[0] // 48, wanted[1] // 48)


def test_gemma_4_cuts_an_image_as_its_processor_for_torchvision(gemma4: ModelAdapter) -> None:
    """Pixels of a cell in reading order, colours last, and (column, row) of each cell."""
    grid = GridShape(2, 3)
    side = gemma4.cell_side  # type: ignore[attr-defined]
    canvas = torch.arange(grid.num_cells * side**2 * 3, dtype=torch.uint8)
    image = Image.fromarray(canvas.view(2 * side, 3 * side, 3).numpy())
    prepared = gemma4.draw([image], [gemma4.letterbox(image.size)], [grid])  # type: ignore[attr-defined]
    fifth = canvas.view(2 * side, 3 * side, 3)[side:, side : 2 * side].flatten() / 255
    torch.testing.assert_close(prepared.inputs["pixel_values"][4], fifth)
    assert prepared.inputs["image_position_ids"].tolist() == [
        [0, 0],
        [1, 0],
        [2, 0],
        [0, 1],
        [1, 1],
        [2, 1],
    ]


def test_gemma_3_stretches_images_and_pads_strips(gemma3: ModelAdapter) -> None:
    assert isinstance(gemma3, Gemma3Adapter)
    assert gemma3.grid == GridShape(5, 5)  # ten patches a side, pooled two by two
    box = gemma3.letterbox((90, 30))
    assert (box.canvas_width, box.canvas_height) == (90, 30)
    strip = gemma3.letterbox((6000, 10))
    assert strip.canvas_width / strip.canvas_height == MAX_ASPECT_RATIO
    assert gemma3.resample is Image.Resampling.BILINEAR  # its processor's, not everybody's


@pytest.mark.parametrize("adds_it", [False, True])
def test_a_prompt_begins_once(profile: ModelProfile, adds_it: bool, tmp_path: Path) -> None:
    """Gemma 3's tokenizer begins every text with <bos>, Gemma 4's leaves it to the prompt."""
    shutil.copytree(profile.model_id, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer.json"
    begin = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    added = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
    }
    stated = json.loads(file.read_text()) | ({"post_processor": added} if adds_it else {})
    file.write_text(json.dumps(stated))
    adapter = load_adapter(profile.model_copy(update={"model_id": str(tmp_path)}), device="cpu")
    assert (adapter.tokenizer("it").input_ids[0] == 2) == adds_it
    features = adapter.encode_images([Image.new("RGB", (30, 20))])
    prompt = adapter.embed_prompt("it", features)
    begun = adapter.decoder.embedding(torch.tensor([2, 3]))
    assert torch.equal(prompt.embeds[:2], begun)


def test_cells_of_another_model_are_refused(profile: ModelProfile, tmp_path: Path) -> None:
    shutil.copytree(profile.model_id, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "processor_config.json"
    stated = json.loads(file.read_text())
    stated["image_processor"]["patch_size"] = 16
    file.write_text(json.dumps(stated))
    other = profile.model_copy(update={"model_id": str(tmp_path)})
    with pytest.raises(ModelError, match=r"patches of 16 pixels merged 3 x 3, the model wants 2"):
        load_adapter(other, device="cpu")


@pytest.mark.parametrize("size", [(1000, 10), (7500, 100), (1, 1), (2, 900)])
@pytest.mark.parametrize("max_cells", [70, 7])
def test_strips_keep_within_the_cells_that_an_image_gets(
    profile: ModelProfile, size: tuple[int, int], max_cells: int
) -> None:
    """One side was rounded up to a cell, and the other stayed as it was."""
    grid = DynamicGrid(min_cells=max_cells, max_cells=max_cells)
    limited = profile.images.model_copy(update={"answers": grid})
    adapter = load_adapter(profile.model_copy(update={"images": limited}), device="cpu")
    (features,) = adapter.encode_images([Image.new("RGB", size)])
    assert features.tokens.shape[0] == features.grid.num_cells <= max_cells
    assert features.letterbox.content_mask(features.grid).any()
    (crop,) = encode_crops(adapter, [Image.new("RGB", size)], 100)
    assert crop.grid.num_cells <= max_cells


@pytest.mark.parametrize(
    ("family", "adapter", "stock"),
    [
        ("gemma4", Gemma4Adapter, Gemma4ForConditionalGeneration),
        ("gemma4_unified", Gemma4UnifiedAdapter, Gemma4UnifiedForConditionalGeneration),
    ],
)
def test_a_model_without_images_is_refused(
    families: dict[str, ModelProfile],
    gemma4: ModelAdapter,
    family: str,
    adapter: type[ModelAdapter],
    stock: type[PreTrainedModel],
) -> None:
    config = AutoConfig.from_pretrained(families[family].model_id)
    config.vision_config = None
    with pytest.raises(ModelError, match=r"takes no images: use a model that does"):
        adapter(stock(config), gemma4.tokenizer, families[family], gemma4.image_processor)


SMALL = {
    "gemma4": (
        {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2},
        r"each of its layers takes 8 numbers of its own for every token and its last 2 layers take "
        r"keys and values of layers below, which .* use Gemma 4 12B, 26B-A4B or 31B",
    ),
    "gemma4_unified": ({"num_kv_shared_layers": 2}, r": its last 2 layers take keys and values of"),
}
"""What is particular to E2B and E4B."""


@pytest.mark.parametrize("family", sorted(SMALL))
def test_the_small_gemmas_are_refused_before_they_are_fetched(
    families: dict[str, ModelProfile], family: str, tmp_path: Path
) -> None:
    """Their layers ask for more than the layer below gives, and some have no keys of their own."""
    text, message = SMALL[family]
    config = json.loads((Path(families[family].model_id) / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"text_config": config["text_config"] | text})
    )
    small = families[family].model_copy(update={"model_id": str(tmp_path)})
    with pytest.raises(ModelError, match=message):
        load_adapter(small, device="cpu")
    with pytest.raises(ModelError, match=message):
        draft_profile(str(tmp_path))
    with pytest.raises(ModelError, match=message):
        model_dimensions(small)  # of which plans are made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tower_gets_what_the_stock_processor_makes(
    families: dict[str, ModelProfile], dtype: str
) -> None:
    """Pixels in single precision: the tower scales them before it rounds them."""
    grid = DynamicGrid(min_cells=70, max_cells=70)  # as few as the stock processor can be told
    settings = families["gemma4"].images.model_copy(update={"answers": grid})
    profile = families["gemma4"].model_copy(update={"images": settings})
    adapter = load_adapter(profile, device="cpu", dtype=dtype)
    sizes = [(70, 100), (60, 40), (31, 300)]
    images = [Image.effect_noise(size, 90).convert("RGB") for size in sizes]
    whole, *others = adapter.encode_images(images)
    processor = Gemma4ImageProcessorPil.from_pretrained(profile.model_id, max_soft_tokens=70)
    inputs = processor(images, return_tensors="pt")
    counts = inputs.pop("num_soft_tokens_per_image").tolist()
    assert [len(one.tokens) for one in (whole, *others)] == counts
    with torch.inference_mode():
        stock = adapter.model.get_image_features(**inputs, return_dict=True).pooler_output
    assert torch.equal(whole.tokens, stock[0])  # of as many cells as there may be: none is padding
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == "float32" else {"atol": 0.1, "rtol": 0.1}
    for one, wanted in zip(others, stock[1:], strict=True):
        torch.testing.assert_close(one.tokens, wanted, **tolerance)


def test_a_dense_gemma_4_answers_as_its_stock_class(families: dict[str, ModelProfile]) -> None:
    """The tests of the family run the mixture."""
    profile = families["gemma4"]
    adapter = load_adapter(profile, device="cpu")
    image = Image.effect_noise((60, 40), 90).convert("RGB")
    prompt = adapter.embed_prompt("it", adapter.encode_images([image]))
    stock = Gemma4ForConditionalGeneration.from_pretrained(profile.model_id).eval()
    inputs = stock_inputs(FAMILY_MODELS["gemma4"], adapter, "it", [image])
    with torch.inference_mode():
        ours = prefill(adapter, pad_left([prompt])).logits[0]
        wanted = stock(**inputs).logits[0, -1]
        wanted[adapter.image_token_id] = float("-inf")
    torch.testing.assert_close(ours, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gemma-4-12b", "gemma-4-26b-a4b", "gemma-4-31b"])
def test_the_packaged_rpns_of_gemma_4_end_in_a_layer_without_a_window(name: str) -> None:
    """Every sixth has none: 5, 11, ..."""
    profile = load_profile(name)
    assert profile.rpn.last_layer % 6 == 5
