"""Zoom inference on the GPU: the reused prefix against recomputation, and batches against one."""

import torch

from sdrpn_core.first_stage import first_stage
from sdrpn_core.generation import pad_left, prefill
from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.second_stage import second_stage_prefill
from sdrpn_core.zoom import crop_image
from tests.zoom_checks import check_batched_equals_alone, random_images, random_pipeline

QUESTIONS = ["what is it ?", "what is the small red word ? a a a a blue", "it", "red blue ?"]
IMAGES = random_images([(60, 40), (30, 50), (45, 45), (80, 20)])


def test_reused_prefix_in_bfloat16_equals_recomputation(half: ModelAdapter) -> None:
    """Logits to a few roundings of bfloat16 (2 ** -8) of their size."""
    features = half.encode_images(IMAGES)
    crops = [half.encode_images([crop_image(i, BoxXYXY(3.0, 2.0, 19.0, 15.5))]) for i in IMAGES]
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
