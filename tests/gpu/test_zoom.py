"""Zoom inference on the GPU: the reused prefix against recomputation, and batches against one."""

import pytest
import torch

from data_contracts.profiles import ModelProfile
from sdrpn_core.generation.greedy import prefill
from sdrpn_core.generation.prompt_batch import pad_left
from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.zoom.first_stage import first_stage
from sdrpn_core.zoom.second_stage import second_stage_prefill
from tests.zoom_checks import check_batched_equals_alone, random_images, random_pipeline

QUESTIONS = ["what is it ?", "what is the small red word ? a a a a blue", "it", "red blue ?"]
IMAGES = random_images([(60, 40), (30, 50), (45, 45), (80, 20)])


def test_reused_prefix_in_bfloat16_equals_recomputation(half: ModelAdapter) -> None:
    """Logits to a few roundings of bfloat16 (2 ** -8) of their size."""
    features = half.encode_images(IMAGES)
    crops = [half.encode_images([BoxXYXY(3.0, 2.0, 19.0, 15.5).crop(i)]) for i in IMAGES]
    rpn = RegionProposalNetwork.from_adapter(half, half.profile.rpn).set_precision(half.dtype)
    reused = second_stage_prefill(half, first_stage(half, rpn.eval(), features, QUESTIONS), crops)
    for index, (question, image, row) in enumerate(zip(QUESTIONS, features, crops, strict=True)):
        with torch.inference_mode():
            plain = prefill(half, pad_left([half.embed_prompt(question, [image, *row])]))
        scale = float(plain.logits.abs().max())
        torch.testing.assert_close(
            reused.logits[index], plain.logits[0], atol=scale * 2**-4, rtol=0
        )


def test_batch_in_float32_equals_one_by_one(full: ModelAdapter) -> None:
    found = check_batched_equals_alone(random_pipeline(full), IMAGES, QUESTIONS)
    assert sum(found.values()) == len(IMAGES)


def test_withdrawn_images_in_bfloat16_in_a_batch_equal_one_by_one(half: ModelAdapter) -> None:
    features = half.encode_images(IMAGES)
    crops = [half.encode_images([BoxXYXY(3.0, 2.0, 19.0, 15.5).crop(i)]) for i in IMAGES]
    crops[2] = []
    rpn = RegionProposalNetwork.from_adapter(half, half.profile.rpn).set_precision(half.dtype)
    first = first_stage(half, rpn.eval(), features, QUESTIONS)
    together = second_stage_prefill(half, first, crops, withdraw_image=True)
    for index, (question, image, row) in enumerate(zip(QUESTIONS, features, crops, strict=True)):
        first = first_stage(half, rpn, [image], [question])
        alone = second_stage_prefill(half, first, [row], withdraw_image=True)
        scale = float(alone.logits.abs().max())
        torch.testing.assert_close(
            together.logits[index], alone.logits[0], atol=scale * 2**-4, rtol=0
        )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_model_spread_over_two_devices_zooms(full: ModelAdapter, profile: ModelProfile) -> None:
    """Rows were picked with indices of the first device from tensors on the second."""
    last = f"model.language_model.layers.{profile.num_layers - 1}"
    spread = load_adapter(profile, device_map={"": 0, last: 1})
    for withdraw_image in (False, True):
        pipelines = [random_pipeline(adapter) for adapter in (full, spread)]
        for pipeline in pipelines:
            pipeline.regions = pipeline.regions.with_changes(withdraw_image=withdraw_image)
        whole, parts = (pipeline.answer(IMAGES, QUESTIONS) for pipeline in pipelines)
        assert [(a.text, a.boxes) for a in whole] == [(a.text, a.boxes) for a in parts]
