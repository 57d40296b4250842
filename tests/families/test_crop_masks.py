"""A masked crop is the whole crop with the other tokens hidden from everything."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPVisionModel, SiglipVisionModel

from sdrpn_core.decoding.decoder import DecoderInput
from sdrpn_core.geometry import GridShape
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.images import PreparedImages
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.zoom.first_stage import first_stage
from sdrpn_core.zoom.second_stage import second_stage_prefill
from tests.families.conftest import QUESTIONS, Loaded
from tests.families.pattern_masks import PatternMasks
from tests.zoom_checks import encode_crops


@torch.inference_mode()
def test_a_masked_crop_is_a_crop_with_tokens_hidden(
    loaded: Loaded, images: list[Image.Image], crops: list[list[Image.Image]]
) -> None:
    """Positions stay; the model runs without the hidden tokens, here it runs with them unseen."""
    adapter = loaded.adapter
    features = adapter.encode_images(images)
    rng = np.random.default_rng(5)
    whole = [encode_crops(adapter, row) if row else [] for row in crops]
    masked = [[_some_hidden(crop, rng) for crop in row] for row in whole]
    rpn = RegionProposalNetwork.from_adapter(adapter, loaded.shape)
    first = first_stage(adapter, rpn, features, QUESTIONS)
    found = second_stage_prefill(adapter, first, masked).logits
    for index, (question, image) in enumerate(zip(QUESTIONS, features, strict=True)):
        prompt = adapter.embed_prompt(question, [image, *whole[index]])
        seen = torch.ones(len(prompt.embeds), dtype=torch.bool)
        for number, crop in enumerate(masked[index], start=1):
            if crop.shown is not None:
                columns = prompt.image_columns(number)
                seen[columns] = torch.from_numpy(crop.shown.ravel())
        inputs = DecoderInput(
            prompt.embeds[None],
            PatternMasks(prompt.image_numbers, seen),
            position_ids=prompt.position_ids[..., None, :],
            deepstack=prompt.deepstack[:, None],
        )
        hidden = adapter.decoder.run(inputs, range(adapter.profile.num_layers))
        wanted = adapter.decoder.next_token_logits(hidden[:, -1])[0]
        loaded.assert_close(found[index], wanted)


@torch.inference_mode()
def test_a_masked_tower_is_a_tower_with_patches_hidden(
    loaded: Loaded, crops: list[list[Image.Image]]
) -> None:
    """It runs without them; the stock tower here runs with them, and no patch looks at them."""
    adapter = loaded.adapter
    prepared = adapter.prepare_crops([crop for row in crops for crop in row])
    rng = np.random.default_rng(6)
    shown = [_some_cells(grid, rng) for grid in prepared.grids]
    shown[1] = np.ones_like(shown[1])  # among others, one is not masked at all
    if not adapter.masks_tower:
        with pytest.raises(ModelError, match="mask_tower is for families with one fixed grid"):
            adapter.encode_masked(prepared, shown)
        return
    found = adapter.encode_masked(prepared, shown)
    wanted = _with_patches_hidden(adapter, prepared, shown)
    for ours, stock, cells in zip(found, wanted, shown, strict=True):
        assert (ours.grid, ours.letterbox) == (stock.grid, stock.letterbox)
        one, other = (features.showing(cells) for features in (ours, stock))
        loaded.assert_close(one.tokens[one.given_tokens()], other.tokens[other.given_tokens()])


def _with_patches_hidden(
    adapter: ModelAdapter, prepared: PreparedImages, shown: list[NDArray[np.bool_]]
) -> list[ImageFeatures]:
    towers = (CLIPVisionModel, SiglipVisionModel)
    (tower,) = (module for module in adapter.model.modules() if isinstance(module, towers))
    keys = torch.stack([torch.from_numpy(cells.ravel()) for cells in shown])
    if isinstance(tower, CLIPVisionModel):
        keys = torch.nn.functional.pad(keys, (1, 0), value=True)  # the class token

    def hide(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"attention_mask": keys[:, None, None]}

    hook = tower.encoder.register_forward_pre_hook(hide, with_kwargs=True)
    try:
        return adapter.encode_prepared(prepared)
    finally:
        hook.remove()


def _some_hidden(crop: ImageFeatures, rng: np.random.Generator) -> ImageFeatures:
    return crop.showing(_some_cells(crop.grid, rng))


def _some_cells(grid: GridShape, rng: np.random.Generator) -> NDArray[np.bool_]:
    cells = rng.random(grid) < 0.5
    cells.flat[rng.integers(grid.num_cells)] = True
    return cells
