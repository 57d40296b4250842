"""What is GLM's own beside the contract of families: its prompts, marks and image processors."""

import json
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import processors
from transformers import AutoImageProcessor, BaseImageProcessor
from transformers.models.glm4v.image_processing_pil_glm4v import (
    Glm4vImageProcessorPil,
    smart_resize,
)
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil

from data_contracts.profiles import DynamicGrid
from sdrpn_core.geometry import GridShape
from sdrpn_core.models.glm4v import Glm4vAdapter
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.profiles import load_profile
from tests.families.glm import CELL, FRAMES, tiny_glm4v
from tests.zoom_checks import random_images

NAMES = ["glm-4.1v-9b", "glm-4.5v", "glm-4.6v-flash"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Glm4vAdapter:
    directory: Path = tmp_path_factory.mktemp("model")
    loaded = load_adapter(tiny_glm4v(directory), device="cpu")
    assert isinstance(loaded, Glm4vAdapter)
    return loaded


@given(st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_grids_are_the_stock_processor_s(adapter: Glm4vAdapter, size: tuple[int, int]) -> None:
    """It bounds the pixels of all frames of a patch; else a rule would give half its cells."""
    rule = adapter.profile.images.answers
    assert isinstance(rule, DynamicGrid)
    assume(max(size) <= rule.max_cells * min(size))  # longer ones are padded
    height, width = smart_resize(
        num_frames=FRAMES,
        height=size[1],
        width=size[0],
        temporal_factor=FRAMES,
        factor=CELL,
        min_pixels=rule.min_cells * CELL**2 * FRAMES,
        max_pixels=rule.max_cells * CELL**2 * FRAMES,
    )
    (grid,) = adapter.prepare_images([Image.new("RGB", size)]).grids
    assert grid == GridShape(height // CELL, width // CELL)


def test_an_image_larger_than_the_rule_gets_the_cells_that_it_says(adapter: Glm4vAdapter) -> None:
    rule = adapter.profile.images.answers
    assert isinstance(rule, DynamicGrid)
    (grid,) = adapter.prepare_images([Image.new("RGB", (600, 500))]).grids
    assert 0.75 * rule.max_cells < grid.num_cells <= rule.max_cells


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("<|begin_of_box|>red word<|end_of_box|></answer>", "red word"),
        ("it is <|begin_of_box|>red<|end_of_box|> ?", "it is red ?"),
        ("<|begin_of_box|>", ""),
        ("red", "red"),
    ],
)
def test_marks_of_an_answer_are_no_part_of_it(adapter: Glm4vAdapter, said: str, text: str) -> None:
    """The tokenizer takes them for words: they would spoil every exact match."""
    tokens = adapter.text_tokens(said)
    assert adapter.tokenizer.unk_token_id not in tokens
    assert adapter.decode_tokens(tokens) == text


def test_a_prompt_begins_once_beside_a_tokenizer_that_begins_texts(tmp_path: Path) -> None:
    """It has no token of its own to begin with, by which a second beginning would be told."""
    adapter = load_adapter(tiny_glm4v(tmp_path), device="cpu")
    start = [("[gMASK]", 1), ("<sop>", 2)]
    beginning = processors.TemplateProcessing(single="[gMASK] <sop> $A", special_tokens=start)
    features = adapter.encode_images(random_images([(60, 40)]))
    plain = adapter.embed_prompt("what is it ?", features)
    adapter.tokenizer.backend_tokenizer.post_processor = beginning
    assert adapter.tokenizer("it").input_ids[:2] == [1, 2]
    assert adapter.embed_prompt("what is it ?", features).first_ids == plain.first_ids
    assert plain.first_ids[:3] == (1, 2, 3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Glm4vImageProcessor", Glm4vImageProcessorPil),
        ("Glm4vImageProcessorFast", Glm4vImageProcessorPil),
        ("Glm46VImageProcessor", Glm46VImageProcessorPil),
        ("Glm46VImageProcessorFast", Glm46VImageProcessorPil),
    ],
)
def test_processor_files_of_the_hub_load_without_torchvision(
    name: str, kind: type[BaseImageProcessor], tmp_path: Path
) -> None:
    settings = {"image_processor_type": name, "patch_size": 14, "temporal_patch_size": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path, backend="pil"), kind)


@pytest.mark.parametrize("name", NAMES)
def test_packaged_prompts_and_grids(name: str) -> None:
    """Only GLM-4.1V cannot be told not to think: its thought is ended, and its answer begun."""
    profile = load_profile(name)
    told = Glm4vAdapter.defaults.prompt
    if name == "glm-4.1v-9b":
        told = told.replace("/nothink", "").replace("</think>\n", "</think><answer>")
    assert profile.prompt == told
    if profile.next_turn is not None:
        assert profile.prompt.endswith(profile.next_turn.removeprefix("<|user|>\n"))
