"""Mistral 3 adapters against the stock class fed by the stock image processor."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

from data_contracts.profiles import DynamicGrid, ModelProfile, SquareGrid
from sdrpn_core.geometry import GridShape
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.mistral3 import Mistral3Adapter
from tests.families.mistral import BREAKS, CELL, MOST, tiny_ministral3, tiny_mistral3
from tests.hub_server import model_hub
from tests.stock_generation import check_generates_as_stock
from tests.tiny_models import tiny_tokenizer
from tests.zoom_checks import check_batched_equals_alone, random_images, random_pipeline

MAKERS = {"Mistral Small": tiny_mistral3, "Ministral 3": tiny_ministral3}
SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))


@pytest.fixture(scope="module", params=list(MAKERS))
def adapter(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Mistral3Adapter:
    make: Callable[[Path], ModelProfile] = MAKERS[request.param]
    return loaded(make(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Mistral3Adapter:
    return loaded(tiny_mistral3(tmp_path_factory.mktemp("model")))


def loaded(profile: ModelProfile) -> Mistral3Adapter:
    adapter = load_adapter(profile, device="cpu")
    assert isinstance(adapter, Mistral3Adapter)
    return adapter


def grids_of(
    adapter: Mistral3Adapter, size: tuple[int, int], rule: DynamicGrid | None = None
) -> GridShape:
    """Of an image of this (width, height)."""
    if rule is not None:
        images = adapter.profile.images.model_copy(update={"answers": rule})
        adapter = adapter.with_profile(adapter.profile.model_copy(update={"images": images}))
    return adapter.prepare_images([Image.new("RGB", size)]).grids[0]


@torch.inference_mode()
def test_generates_what_the_stock_model_does_from_the_stock_processor(
    adapter: Mistral3Adapter,
) -> None:
    """Two images, the rows of each ended by breaks; Ministral 3 scales queries by their place."""
    images, question = random_images([(60, 40), (30, 50)]), "what is the red word"
    prompt = adapter.embed_prompt(question, adapter.encode_images(images))
    row, end = "[IMG_BREAK]", "[IMG_END]"
    first = row.join(["<image>" * 8] * 5) + end
    second = row.join(["<image>" * 4] * 7) + end
    text = f"USER: {first}{second} {question} ASSISTANT:"
    cells = {"height": CELL, "width": CELL}
    pixels = adapter.image_processor(images, patch_size=cells, return_tensors="pt")
    check_generates_as_stock(adapter, prompt, text, dict(pixels))


def test_a_zoom_in_a_batch_equals_one_by_one(adapter: Mistral3Adapter) -> None:
    pictures = random_images([(60, 40), (30, 50), (80, 20), (60, 40)])
    questions = ["what is it ?", "red ?", "what is the small word ?", "blue is it ?"]
    for withdraw_image in (False, True):
        pipeline = random_pipeline(adapter, withdraw_image=withdraw_image)
        counts = check_batched_equals_alone(pipeline, pictures, questions)
        assert any(counts), "no question was answered with a crop"


@given(SIZES)
def test_grids_are_the_stock_processor_s(small: Mistral3Adapter, size: tuple[int, int]) -> None:
    """Under the rule that the stock processor has: enlarge nothing, and no side above its own."""
    assume(size[0] * size[1] >= CELL**2)  # a cell is the least that there is
    pixels = np.zeros((3, size[1], size[0]), np.uint8)
    height, width = get_resize_output_image_size(pixels, MOST * CELL, CELL, "channels_first")
    # It makes nothing of what is thinner than a pixel once it is smaller.
    wanted = GridShape(max(height // CELL, 1), max(width // CELL, 1))
    assert grids_of(small, size) == wanted


@given(SIZES)
def test_small_pictures_are_enlarged_to_the_least_number_of_cells(
    small: Mistral3Adapter, size: tuple[int, int]
) -> None:
    """Rounded up, in the picture's shape, but never to a side that the tower does not take."""
    grid = grids_of(small, size, DynamicGrid(min_cells=24, max_cells=30))
    assert max(grid) <= MOST
    if max(grid) < MOST:
        assert 24 <= grid.num_cells <= (grid.width + 1) * (grid.height + 1)
        assert (grid.width - 1) * (grid.height - 1) < 30


@pytest.mark.parametrize("use", ["labels", "answers"])
def test_a_square_larger_than_the_tower_takes_is_refused(small: Mistral3Adapter, use: str) -> None:
    """It was drawn at positions that the tower has never seen, and then refused once a picture was
    to be drawn on it: for answers, after training. Free grids are kept within."""

    def with_grid(side: int) -> Mistral3Adapter:
        images = small.profile.images.model_copy(update={use: SquareGrid(side=side)})
        return small.with_profile(small.profile.model_copy(update={"images": images}))

    picture = Image.new("RGB", (60, 40))
    (grid,) = with_grid(MOST).prepare_images([picture], for_labels=use == "labels").grids
    assert grid == (MOST, MOST)
    with pytest.raises(ModelError, match=r"11 cells a side, and the model's tower takes 10"):
        with_grid(MOST + 1)


@given(SIZES, st.integers(2, 150))
@example((1, 300), 10)
@example((300, 1), 10)
def test_breaks_count_towards_the_budget_of_a_crop(
    small: Mistral3Adapter, size: tuple[int, int], budget: int
) -> None:
    (grid,) = small.prepare_crops([Image.new("RGB", size)], budget).grids
    assert grid.height * (grid.width + 1) <= budget
    (whole,) = small.prepare_crops([Image.new("RGB", size)]).grids
    assert grid.width <= whole.width
    assert grid.height <= whole.height


@pytest.mark.parametrize("size", [(CELL, CELL), (8 * CELL, CELL), (CELL, 8 * CELL)])
def test_prompts_hold_the_breaks_of_their_images(
    small: Mistral3Adapter, size: tuple[int, int]
) -> None:
    """For what punishes repetition; an image of one row has no break, only its end."""
    prompt = small.embed_prompt("it", small.encode_images([Image.new("RGB", size)]))
    (grid,) = prompt.image_grids
    end_of_row, end = small.tokenizer.convert_tokens_to_ids(BREAKS)
    assert (end_of_row in prompt.token_ids) == (grid.height > 1)
    assert end in prompt.token_ids
    assert prompt.image_lengths == (grid.height * (grid.width + 1),)


@torch.inference_mode()
def test_a_single_cell_is_encoded_as_others_are(small: Mistral3Adapter) -> None:
    """The stock class loses an axis where one cell is all that it is given."""
    (picture,) = random_images([(CELL, CELL)])
    (alone,) = small.encode_images([picture])
    pixels = small.image_processor([picture, picture], do_resize=False, return_tensors="pt")
    first, _ = small.model.get_image_features(**pixels, return_dict=True).pooler_output
    assert alone.tokens.shape == (2, first.shape[1])
    torch.testing.assert_close(alone.tokens[0], first[0])
    end = small.decoder.embedding(torch.tensor(small.end_id))
    torch.testing.assert_close(alone.tokens[1], end)


def test_a_tokenizer_without_breaks_is_refused(tmp_path: Path) -> None:
    profile = tiny_mistral3(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"tokenizer has no \[IMG_BREAK\]"):
        load_adapter(profile, device="cpu")


def made_with_transformers_4(folder: Path) -> ModelProfile:
    """A model whose tokenizer.json splits words otherwise than Mistral's own tokenizer."""
    profile = tiny_mistral3(folder)
    config = json.loads((folder / "config.json").read_text())
    older = config | {"transformers_version": "4.50.0"}
    (folder / "config.json").write_text(json.dumps(older))
    many = {f"word{index}": index for index in range(131_072)}  # small ones are left alone
    tokenizer = Tokenizer(models.WordLevel(many, unk_token="word0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    whole.add_tokens([AddedToken(token, special=True) for token in ("<image>", *BREAKS)])
    whole.save_pretrained(folder)
    return profile


def test_words_are_split_as_in_mistral_s_own_tokenizer(tmp_path: Path) -> None:
    split = loaded(made_with_transformers_4(tmp_path)).tokenizer.backend_tokenizer.pre_tokenizer
    assert [word for word, _ in split.pre_tokenize_str("RedBlue")] == ["Red", "Blue"]


_SPLIT = """
import sys
from data_contracts.profiles import ModelProfile
from sdrpn_core.models.loading import load_adapter
adapter = load_adapter(ModelProfile.model_validate_json(sys.argv[1]), device="cpu")
split = adapter.tokenizer.backend_tokenizer.pre_tokenizer
print(*(word for word, _ in split.pre_tokenize_str("RedBlue")))
"""


@pytest.mark.slow
def test_words_of_a_model_of_the_hub_are_split_alike_whoever_made_it(tmp_path: Path) -> None:
    """They were not in a copy that the hub does not say is made from one of Mistral's own."""
    profile = made_with_transformers_4(tmp_path / "model")
    plain = profile.model_copy(update={"model_id": "lab/copy"}).model_dump_json()
    hidden = {"HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HUB_CACHE"}
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    own = {"HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1"}
    with model_hub({"lab/copy": tmp_path / "model"}) as endpoint:
        run = subprocess.run(
            [sys.executable, "-c", _SPLIT, plain],
            env=inherited | own | {"HF_ENDPOINT": endpoint},
            capture_output=True,
            text=True,
            check=False,
        )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "Red Blue\n"
