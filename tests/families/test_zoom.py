"""Two-stage inference: the reused prefix is exact, and batching changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sdrpn_core.decoding.decoder import DecoderInput
from sdrpn_core.generation.greedy import answer_plain, greedy_decode
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures, Prompt
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.zoom.first_stage import FirstStage, first_stage
from sdrpn_core.zoom.second_stage import second_stage_prefill
from tests.families.conftest import QUESTIONS, Loaded
from tests.families.pattern_masks import PatternMasks
from tests.zoom_checks import (
    EVERY_REGION,
    check_batched_equals_alone,
    random_images,
    random_pipeline,
)

MAX_NEW_TOKENS = 6


@pytest.fixture(scope="module")
def rpn(loaded: Loaded) -> RegionProposalNetwork:
    return RegionProposalNetwork.from_adapter(loaded.adapter, loaded.shape)


@pytest.fixture(scope="module")
def features(loaded: Loaded, images: list[Image.Image]) -> list[ImageFeatures]:
    return loaded.adapter.encode_images(images)


@pytest.fixture(scope="module")
def encoded(loaded: Loaded, crops: list[list[Image.Image]]) -> list[list[ImageFeatures]]:
    return [loaded.adapter.encode_images(row) if row else [] for row in crops]


@pytest.fixture(scope="module")
def first(loaded: Loaded, rpn: RegionProposalNetwork, features: list[ImageFeatures]) -> FirstStage:
    """Good for any number of second stages."""
    return first_stage(loaded.adapter, rpn, features, QUESTIONS)


def test_zoom_with_prefix_reuse_equals_recomputation(
    loaded: Loaded,
    first: FirstStage,
    images: list[Image.Image],
    crops: list[list[Image.Image]],
    features: list[ImageFeatures],
    encoded: list[list[ImageFeatures]],
) -> None:
    """Logits against the stock forward over image, crops and question; tokens against a rerun."""
    adapter = loaded.adapter
    reused = second_stage_prefill(adapter, first, encoded)
    answers = greedy_decode(adapter, reused, MAX_NEW_TOKENS)
    for index, (question, image, row) in enumerate(zip(QUESTIONS, images, crops, strict=True)):
        stock = loaded.next_token_logits(loaded.inputs(question, [image, *row]))
        loaded.assert_close(reused.logits[index], stock)
        (plain,) = answer_plain(
            adapter,
            [question],
            [[features[index], *encoded[index]]],
            max_new_tokens=MAX_NEW_TOKENS,
        )
        assert answers[index].tokens == plain.tokens


def test_zoom_under_a_repetition_penalty_equals_recomputation(
    loaded: Loaded,
    rpn: RegionProposalNetwork,
    features: list[ImageFeatures],
    encoded: list[list[ImageFeatures]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which tokens a prompt holds comes from the first stage, and is that of the whole prompt."""
    adapter = loaded.adapter
    monkeypatch.setattr(adapter.model.generation_config, "repetition_penalty", 4.0)
    first = first_stage(adapter, rpn, features, QUESTIONS)
    answers = greedy_decode(adapter, second_stage_prefill(adapter, first, encoded), MAX_NEW_TOKENS)
    images = [[image, *own] for image, own in zip(features, encoded, strict=True)]
    plain = answer_plain(adapter, QUESTIONS, images, max_new_tokens=MAX_NEW_TOKENS)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in plain]
    monkeypatch.undo()
    free = answer_plain(adapter, QUESTIONS, images, max_new_tokens=MAX_NEW_TOKENS)
    assert [answer.tokens for answer in free] != [answer.tokens for answer in plain]


def test_a_withdrawn_image_is_out_of_view_of_the_upper_layers_only(
    loaded: Loaded,
    first: FirstStage,
    features: list[ImageFeatures],
    encoded: list[list[ImageFeatures]],
) -> None:
    """Against running all columns through all layers, with the image masked from layer B on."""
    adapter = loaded.adapter
    start = second_stage_prefill(adapter, first, encoded, withdraw_image=True)
    answers = greedy_decode(adapter, start, MAX_NEW_TOKENS)
    differs = False
    for index, (question, image, row) in enumerate(zip(QUESTIONS, features, encoded, strict=True)):
        prompt = adapter.embed_prompt(question, [image, *row])
        masked = _masked_logits(adapter, prompt, withdrawn=bool(row))
        loaded.assert_close(start.logits[index], masked)
        whole = _masked_logits(adapter, prompt, withdrawn=False)
        differs |= not torch.allclose(masked, whole, atol=1e-3)
        for token in answers[index].tokens:
            assert token == int(masked.argmax())
            prompt = _with_token(adapter, prompt, token)
            masked = _masked_logits(adapter, prompt, withdrawn=bool(row))
    assert differs, "the image is looked at by the lower layers only, and nothing changes"


@torch.inference_mode()
def _masked_logits(adapter: ModelAdapter, prompt: Prompt, *, withdrawn: bool) -> torch.Tensor:
    """Logits of the next token."""
    branch, length = adapter.profile.rpn.branch_layer, len(prompt.embeds)
    in_view = torch.ones(length, dtype=torch.bool)
    below = above = PatternMasks(prompt.image_numbers, in_view)
    if withdrawn:
        above = PatternMasks(prompt.image_numbers, in_view.clone())
        above.in_view[prompt.image_numbers == 1] = False
    hidden = prompt.embeds[None]
    upper = range(branch, adapter.profile.num_layers)
    for layers, masks in ((range(branch), below), (upper, above)):
        inputs = DecoderInput(
            hidden,
            masks,
            position_ids=prompt.position_ids[..., None, :],
            deepstack=prompt.deepstack[:, None],
        )
        hidden = adapter.decoder.run(inputs, layers)
    return adapter.decoder.next_token_logits(hidden[:, -1])[0]


def _with_token(adapter: ModelAdapter, prompt: Prompt, token: int) -> Prompt:
    position = adapter.text_positions(prompt.position_ids.max().view(1, 1) + 1)[..., 0, :]
    return replace(
        prompt,
        embeds=torch.cat([prompt.embeds, adapter.decoder.embedding(torch.tensor([token]))]),
        deepstack=torch.nn.functional.pad(prompt.deepstack, (0, 0, 0, 1)),
        position_ids=torch.cat([prompt.position_ids, position], dim=-1),
        image_numbers=torch.nn.functional.pad(prompt.image_numbers, (0, 1)),
    )


@pytest.mark.parametrize("mask_threshold_ratio", [None, 1.0])
@pytest.mark.parametrize("withdraw_image", [False, True])
def test_zoom_in_a_batch_of_mixed_sizes_equals_one_by_one(
    loaded: Loaded,
    rpn: RegionProposalNetwork,
    images: list[Image.Image],
    withdraw_image: bool,
    mask_threshold_ratio: float | None,
) -> None:
    """Some questions get crops, some do not; two are about one image."""
    adapter = loaded.adapter
    limit = float(np.median([_seen_ratio(adapter, f) for f in adapter.encode_images(images)]))
    pipeline = ZoomPipeline(
        adapter,
        rpn,
        threshold=0.9,
        regions=EVERY_REGION.model_copy(
            update={
                "max_seen_ratio": limit,
                "withdraw_image": withdraw_image,
                "mask_threshold_ratio": mask_threshold_ratio,
                "mask_tower": mask_threshold_ratio is not None and adapter.masks_tower,
                "min_box_side": 1 if mask_threshold_ratio is None else 2,
            }
        ),
    )
    counts = check_batched_equals_alone(
        pipeline,
        [*images, *images],
        [*QUESTIONS, *reversed(QUESTIONS)],
        max_new_tokens=MAX_NEW_TOKENS,
        batch_size=2 * len(images),
    )
    assert counts[0] >= 2, "no question was answered without a crop"
    assert counts.total() - counts[0] >= 2, "no question was answered with a crop"


@pytest.mark.parametrize("withdraw_image", [False, True])
@pytest.mark.parametrize("picture_sizes", [[(60, 40)] * 3, [(60, 40), (40, 60), (60, 40)]])
def test_questions_of_equal_length_in_a_batch_equal_one_by_one(
    loaded: Loaded, picture_sizes: list[tuple[int, int]], withdraw_image: bool
) -> None:
    """Nothing needs padding: of images of their own, of one image twice, of grids that differ."""
    pipeline = random_pipeline(loaded.adapter, withdraw_image=withdraw_image)
    a, b, c = random_images(picture_sizes)
    questions = ["what is it ?", "red is it ?", "what is red ?", "it is red ?"]
    for asked in ([a, b, c], [a, a, b, c]):
        check_batched_equals_alone(pipeline, asked, questions[: len(asked)])


@pytest.mark.parametrize(
    ("prompt", "apart"),
    [("{images} {question} a", "prefix_length"), ("{question} {images} a", "image_starts")],
)
def test_questions_that_make_up_for_their_images_equal_one_by_one(
    loaded: Loaded, prompt: str, apart: str
) -> None:
    """Prompts of one length whose images are not: prefixes, or starts of images, differ."""
    profile = loaded.adapter.profile.model_copy(update={"prompt": prompt})
    adapter = loaded.adapter.with_profile(profile)
    pictures = random_images([(100, 60), (40, 30), (60, 40)])
    images = adapter.encode_images(pictures)
    longest = max(image.num_tokens for image in images)
    questions = ["what is it ?" + " a" * (longest - image.num_tokens) for image in images]
    asked = [
        adapter.embed_prompt(question, [image])
        for question, image in zip(questions, images, strict=True)
    ]
    assert len({len(one.embeds) for one in asked}) == 1
    if len({image.num_tokens for image in images}) > 1:
        assert len({getattr(one, apart) for one in asked}) > 1
    check_batched_equals_alone(random_pipeline(adapter), pictures, questions)


def test_streamed_pieces_add_up_to_the_answers(loaded: Loaded, images: list[Image.Image]) -> None:
    pipeline = random_pipeline(loaded.adapter)
    expected = pipeline.answer(images, QUESTIONS, max_new_tokens=MAX_NEW_TOKENS)
    texts = [""] * len(QUESTIONS)
    for piece in pipeline.stream(images, QUESTIONS, max_new_tokens=MAX_NEW_TOKENS):
        texts[piece.index] += piece.text
    assert texts == [answer.text for answer in expected]


def _seen_ratio(adapter: ModelAdapter, features: ImageFeatures) -> float:
    """Pixels that the model sees per pixel of the canvas."""
    width, height = adapter.pixels_seen(features)
    return width * height / (features.letterbox.canvas_width * features.letterbox.canvas_height)
