"""A masked crop is the whole crop with the other tokens hidden from everything."""

import numpy as np
import torch
from PIL import Image

from sdrpn_core.decoding.decoder import DecoderInput
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.zoom.first_stage import first_stage
from sdrpn_core.zoom.second_stage import second_stage_prefill
from tests.families.conftest import QUESTIONS, Loaded
from tests.families.pattern_masks import PatternMasks


@torch.inference_mode()
def test_a_masked_crop_is_a_crop_with_tokens_hidden(
    loaded: Loaded, images: list[Image.Image], crops: list[list[Image.Image]]
) -> None:
    """Positions stay; the model runs without the hidden tokens, here it runs with them unseen."""
    adapter = loaded.adapter
    features = adapter.encode_images(images)
    rng = np.random.default_rng(5)
    whole = [adapter.encode_crops(row) if row else [] for row in crops]
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


def _some_hidden(crop: ImageFeatures, rng: np.random.Generator) -> ImageFeatures:
    cells = rng.random(crop.grid) < 0.5
    cells.flat[rng.integers(crop.grid.num_cells)] = True
    return crop.showing(cells)
