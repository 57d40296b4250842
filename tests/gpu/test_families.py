"""What runs on the device gives what runs on the CPU, in every family: nothing is left behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_contracts.configs import EvaluationConfig
from data_contracts.enums import ExtractionStatus, Method, QuestionKind
from data_contracts.label_settings import RegionSettings
from data_contracts.sources import SceneSource
from data_contracts.training import TrainingConfig
from sdrpn_core.benchmarks import Document
from sdrpn_core.evaluation.harness import Evaluator
from sdrpn_core.extraction.conversation_layout import Conversation, Turn
from sdrpn_core.extraction.generated_answers import ExtractedAttention, Request, extract_attention
from sdrpn_core.extraction.teacher_forcing import extract_from_answers
from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.rpn.training import train_rpn
from tests.families.registry import FAMILY_MODELS
from tests.rpn_scenes import randomly_labelled
from tests.zoom_checks import random_images, random_pipeline

QUESTIONS = ["what is it ?", "what is the small red word ? a a a a blue", "it", "red blue ?"]
IMAGES = random_images([(60, 40), (30, 50), (45, 45), (120, 30)])
MAX_NEW_TOKENS = 6
NUM_DOCUMENTS = 2


@dataclass(frozen=True)
class Places:
    """One model in both places, in float32."""

    cpu: ModelAdapter
    device: ModelAdapter


@pytest.fixture(scope="module", params=sorted(FAMILY_MODELS))
def places(
    request: pytest.FixtureRequest, device: str, tmp_path_factory: pytest.TempPathFactory
) -> Places:
    """The family under test."""
    name = str(request.param)
    profile = FAMILY_MODELS[name].build(tmp_path_factory.mktemp(name))
    profile = profile.model_copy(update={"next_turn": "</s> {question} a"})
    return Places(load_adapter(profile, device="cpu"), load_adapter(profile, device=device))


@pytest.mark.parametrize(  # each pair of choices once
    ("mask_threshold_ratio", "withdraw_image", "crop_tokens"),
    [(None, False, None), (None, True, 4), (1.0, False, 4), (1.0, True, None)],
)
def test_zoom_equals_the_cpu(
    places: Places,
    mask_threshold_ratio: float | None,
    withdraw_image: bool,
    crop_tokens: int | None,
) -> None:
    """Two questions about each image, some with crops and some without."""
    found = []
    for adapter in (places.cpu, places.device):
        pipeline = random_pipeline(
            adapter, mask_threshold_ratio=mask_threshold_ratio, min_box_side=2
        )
        pipeline.regions = pipeline.regions.with_changes(
            withdraw_image=withdraw_image,
            crop_tokens=crop_tokens,
            mask_tower=withdraw_image and adapter.masks_tower,
            max_seen_ratio=0.9,
        )
        found.append(
            pipeline.answer(
                [*IMAGES, *IMAGES],
                [*QUESTIONS, *reversed(QUESTIONS)],
                max_new_tokens=MAX_NEW_TOKENS,
                batch_size=2 * len(IMAGES),
            )
        )
    assert any(answer.boxes for answer in found[0])
    for expected, ours in zip(*found, strict=True):
        assert (ours.text, ours.boxes, ours.num_crop_tokens) == (
            expected.text,
            expected.boxes,
            expected.num_crop_tokens,
        )
        np.testing.assert_allclose(ours.roi_map, expected.roi_map, atol=1e-4)


def check_maps(ours: list[ExtractedAttention], expected: list[ExtractedAttention]) -> None:
    """Equal answers and maps; the maps are on the CPU."""
    maps = []
    for one, other in zip(ours, expected, strict=True):
        assert (one.status, one.response) == (other.status, other.response)
        if other.status is ExtractionStatus.OK:
            maps += [(one.grounding, other.grounding), (one.sink, other.sink)]
    both = [pair for pair in maps if pair != (None, None)]
    assert both, "no answer gave a map"
    for found, wanted in both:
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


def test_attention_of_own_answers_equals_the_cpu(places: Places) -> None:
    """Answers of random models are long: many questions and tokens, so that some end."""
    requests = [
        Request(image, question, kind)
        for kind in QuestionKind
        for questions in (QUESTIONS, QUESTIONS[::-1])
        for image, question in zip(IMAGES, questions, strict=True)
    ]
    check_maps(
        *(
            extract_attention(adapter, requests, max_new_tokens=16)
            for adapter in (places.device, places.cpu)
        )
    )


def test_attention_of_given_answers_equals_the_cpu(places: Places) -> None:
    talks = [
        Conversation(
            image,
            (Turn(question, "red word"), Turn("is it blue ?", "a small word")),
            QuestionKind.TEXTUAL,
        )
        for image, question in zip(IMAGES, QUESTIONS, strict=True)
    ]
    check_maps(
        *(
            [row for rows in extract_from_answers(adapter, talks, max_tokens=512) for row in rows]
            for adapter in (places.device, places.cpu)
        )
    )


def train(adapter: ModelAdapter, **more: Any) -> RpnCheckpoint:
    """Some steps on random labels."""
    return train_rpn(
        adapter,
        randomly_labelled(adapter, IMAGES, QUESTIONS),
        lambda example: IMAGES[int(example.image_uri)],
        TrainingConfig(batch_size=3, learning_rate=1e-3, num_epochs=4, checkpoint_every=2),
        shape=adapter.profile.rpn,
        regions=RegionSettings.preset("default"),
        label_set="merge-labels/0123456789abcdef0123",
        micro_batch_size=2,
        cache_bytes=2**20,
        **more,
    )


def test_training_equals_the_cpu_and_goes_on_where_it_stopped(places: Places) -> None:
    expected = train(places.cpu)
    saved: dict[int, Any] = {}
    whole = train(places.device, save_checkpoint=saved.__setitem__)
    losses = [
        [entry["loss"] for entry in checkpoint.metrics if entry["kind"] == "step"]
        for checkpoint in (whole, expected)
    ]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    resumed = train(places.device, resume=saved[2])
    for name, weight in whole.state.items():
        torch.testing.assert_close(resumed.state[name], weight, atol=1e-5, rtol=1e-4)


def documents() -> list[Document]:
    """With a true box each, for the oracle."""
    return [
        Document(
            benchmark="scenes",
            question_id=f"q{index}",
            image_uri=str(index),
            question=question,
            answers=("red word",),
            kind=QuestionKind.TEXTUAL,
            category="sign",
            true_box=BoxXYXY(5.0, 4.0, 25.0, 14.0),
        )
        for index, question in enumerate(QUESTIONS[:NUM_DOCUMENTS])
    ]


def test_every_method_of_an_evaluation_equals_the_cpu(device: str, tmp_path: Path) -> None:
    """LLaVA, which gives gradients of pixels to ViCrop."""
    profile = FAMILY_MODELS["llava"].build(tmp_path)
    source = SceneSource(name="held-out", num_images=5, seed=1)
    plain = {"source": source, "max_new_tokens": 4, "methods": tuple(Method)}
    found = []
    for place in ("cpu", device):
        adapter = load_adapter(profile, device=place)
        pipeline = random_pipeline(adapter, mask_threshold_ratio=1.0, min_box_side=2)
        evaluator = Evaluator(adapter, EvaluationConfig.model_validate(plain), pipeline)
        found.append(evaluator.evaluate(documents(), load_images, batch_size=NUM_DOCUMENTS))
    assert len(found[0]) == NUM_DOCUMENTS * len(Method)
    for expected, ours in zip(*found, strict=True):
        for column in ("method", "question_id", "prediction", "boxes"):
            assert ours[column] == expected[column], (ours["method"], column)


def load_images(uris: Sequence[str]) -> list[Image.Image]:
    """Images by their places in the list."""
    return [IMAGES[int(uri)] for uri in uris]
