"""What the zoom pipeline refuses, and how early."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_contracts.profiles import RpnShape
from sdrpn_core.images import UnreadableImage
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.images import PreparedImages
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.rpn.network import RegionProposalNetwork
from tests.zoom_checks import EVERY_REGION, random_images, random_pipeline

QUESTIONS = ["what is it ?", "it", "red blue ?"]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return random_images([(60, 40), (30, 50), (45, 45)])


def test_lengths_must_match(adapter: ModelAdapter, images: list[Image.Image]):
    with pytest.raises(ValueError, match=r"3 images for 1 question$"):
        random_pipeline(adapter).answer(images, QUESTIONS[:1])
    with pytest.raises(ValueError, match="give a list"):
        random_pipeline(adapter).answer(images[:1], "what is it ?")
    with pytest.raises(ValueError, match="images is one picture: give a list"):
        random_pipeline(adapter).answer(images[0], QUESTIONS[:1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "question", "reason"),
    [
        ("a.jpg", "it", "image 1 is a str: give PIL images, as Image.open"),
        (np.zeros((4, 4, 3), np.uint8), "it", "image 1 is a ndarray: give PIL images"),
        (None, "it", "image 1 is a NoneType"),
        (Image.new("RGB", (4, 4)), " ", "question 1 is ' ': give a text"),
        (Image.new("RGB", (4, 4)), 5, "question 1 is 5: give a text"),
        (Image.new("RGB", (4, 4)), "\ud83d", "question 1 is .* not valid Unicode"),
    ],
)
def test_what_is_no_image_and_no_question_is_refused_by_its_place(
    adapter: ModelAdapter, images: list[Image.Image], image: Any, question: Any, reason: str
):
    """A path ended in an AttributeError of a string, a blank question was answered."""
    pipeline = random_pipeline(adapter)
    for ask in (pipeline.answer, pipeline.stream):
        with pytest.raises(ValueError, match=reason):
            ask([images[0], image], ["it", question])


def test_a_question_that_cannot_be_asked_is_named_before_others_are_answered(
    adapter: ModelAdapter, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
):
    """All answers to the questions before it were lost, and nothing told its place."""

    def encode(prepared: PreparedImages) -> list[ImageFeatures]:
        pytest.fail("the first question is under way")

    monkeypatch.setattr(adapter, "encode_prepared", encode)
    questions = ["it", "red blue ?", "what is <image> ?"]
    for call in (random_pipeline(adapter).answer, random_pipeline(adapter).stream):
        with pytest.raises(ModelError, match="question 2 contains the image placeholder"):
            call(images, questions, batch_size=1)


def test_a_closed_image_is_refused_by_its_place(adapter: ModelAdapter, tmp_path: Path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    opened = Image.open(tmp_path / "a.png")
    opened.close()
    with pytest.raises(UnreadableImage, match="image 0: cannot be read: Operation on closed image"):
        random_pipeline(adapter).answer([opened], ["it"])


@pytest.mark.parametrize("name", ["max_new_tokens", "batch_size"])
@pytest.mark.parametrize(
    ("number", "told"), [(0, "at least 1"), (-1, "at least 1"), (2.5, "a whole number")]
)
def test_numbers_below_one_and_fractions_are_refused(
    adapter: ModelAdapter, images: list[Image.Image], name: str, number: float, told: str
):
    pipeline = random_pipeline(adapter)
    for ask in (pipeline.answer, pipeline.stream):
        with pytest.raises(ValueError, match=f"{name} is {number}: give {told}"):
            ask(images, QUESTIONS, **{name: number})  # type: ignore[operator]


@pytest.mark.parametrize(
    ("dtype", "told"),
    [
        ("float16", r"finite in float16.*bfloat16"),
        ("float32", r"finite in float32.*damaged"),
    ],
)
def test_a_map_that_is_not_finite_says_which_and_what_to_do(
    adapter: ModelAdapter, images: list[Image.Image], dtype: str, told: str
):
    """It ended in a remark about the map's shape, then in the advice to load float32 in float32."""
    pipeline = random_pipeline(load_adapter(adapter.profile, device="cpu", dtype=dtype))
    with torch.no_grad():
        next(pipeline.rpn.parameters()).fill_(torch.inf)
    for count, which in ((1, ""), (2, "question 0: ")):
        with pytest.raises(ModelError, match=rf"^{which}the RoI map is not {told}"):
            pipeline.answer(images[:count], QUESTIONS[:count])


def test_an_answer_that_is_not_finite_is_none(adapter: ModelAdapter, images: list[Image.Image]):
    """Above the branch nobody looked: it was token 0 again and again, and taken for an answer."""
    pipeline = random_pipeline(load_adapter(adapter.profile, device="cpu", dtype="float16"))
    with torch.no_grad():
        pipeline.adapter.decoder.layers[-1].mlp.down_proj.weight.fill_(torch.inf)
    for ask in (pipeline.answer, pipeline.stream):
        with pytest.raises(ModelError, match=r"^the answer is not finite in float16"):
            list(ask(images[:1], QUESTIONS[:1]))


def test_an_rpn_of_another_branch_is_refused(adapter: ModelAdapter):
    """It was given the input of another layer than it was trained on."""
    rpn = RegionProposalNetwork.from_adapter(adapter, RpnShape(branch_layer=3, depth=2))
    told = r"the RPN branches off before layer 3, profile 'tiny-llava' before layer 2: use"
    with pytest.raises(ModelError, match=told):
        ZoomPipeline(adapter, rpn, threshold=0.5, regions=EVERY_REGION)


@pytest.mark.parametrize("threshold", [1.5, -1, float("nan"), "0.5"])
def test_a_threshold_that_is_none_is_refused_when_it_is_set(adapter: ModelAdapter, threshold: Any):
    """It was taken, and failed in the middle of an answer or found nothing."""
    pipeline = random_pipeline(adapter)
    with pytest.raises(ValueError, match=r"threshold is .*: give a number from 0 to 1"):
        pipeline.threshold = threshold
    pipeline.threshold = np.float32(0.5)


def test_regions_that_are_no_settings_are_refused_when_they_are_set(adapter: ModelAdapter):
    """A dictionary was taken, and failed in the middle of an answer."""
    wrong: Any = {"max_regions": 3}
    pipeline = random_pipeline(adapter)
    with pytest.raises(ValueError, match=r"regions is a dict: give settings, as regions.with_chan"):
        pipeline.regions = wrong
    assert pipeline.regions == EVERY_REGION
