"""What must hold for ``ZoomPipeline`` on every model family, given the family's own model."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from data_contracts.enums import ZoomDecision
from data_contracts.label_settings import RegionSettings
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.zoom.answers import ZoomAnswer

EVERY_REGION = RegionSettings(
    blur_sigma=None,
    threshold_is_peak_ratio=True,
    min_box_side=1,
    max_box_area_ratio=0.9,
    max_regions=3,
)
"""Many regions of many sizes, also of random maps; no gate."""


def random_pipeline(
    adapter: ModelAdapter, seed: int = 0, threshold: float = 0.9, **settings: object
) -> ZoomPipeline:
    """An RPN of random weights, loud enough that maps differ from image to image."""
    rpn = RegionProposalNetwork.from_adapter(adapter, adapter.profile.rpn)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in rpn.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.3 * parameter.abs().mean() * noise.to(parameter))
    regions = EVERY_REGION.model_copy(update=settings)
    return ZoomPipeline(adapter, rpn, threshold=threshold, regions=regions)


def random_images(sizes: Sequence[tuple[int, int]], seed: int = 0) -> list[Image.Image]:
    """Noise in blocks of 8 pixels, one picture for each (width, height)."""
    rng = np.random.default_rng(seed)
    return [
        Image.fromarray(
            rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        ).resize((width, height), Image.Resampling.NEAREST)
        for width, height in sizes
    ]


def encode_crops(
    adapter: ModelAdapter, crops: Sequence[Image.Image], max_tokens: int | None = None
) -> list[ImageFeatures]:
    """Whole crops, for at most ``max_tokens`` tokens each."""
    return adapter.encode_prepared(adapter.prepare_crops(crops, max_tokens))


def check_batched_equals_alone(
    pipeline: ZoomPipeline,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    *,
    max_new_tokens: int = 8,
    batch_size: int = 4,
) -> Counter[int]:
    """Answers, boxes, maps and decisions of a mixed batch equal those of each question alone.

    Returns:
        How many questions were answered with how many crops, so that a caller can see to it that
        the cases it wants were there.
    """
    together = pipeline.answer(
        images, questions, max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    for image, question, answer in zip(images, questions, together, strict=True):
        (alone,) = pipeline.answer([image], [question], max_new_tokens=max_new_tokens)
        assert (answer.text, answer.boxes, answer.decision) == (
            alone.text,
            alone.boxes,
            alone.decision,
        )
        np.testing.assert_allclose(answer.roi_map, alone.roi_map, atol=1e-4)
        check_answer(answer, image.size)
    return Counter(len(answer.boxes) for answer in together)


def check_answer(answer: ZoomAnswer, image_size: tuple[int, int]) -> None:
    """Boxes lie in the image, the map holds probabilities, the decision fits the boxes."""
    for box in answer.boxes:
        assert 0 <= box.x0 < box.x1 <= image_size[0]
        assert 0 <= box.y0 < box.y1 <= image_size[1]
    assert ((answer.roi_map >= 0) & (answer.roi_map <= 1)).all()
    assert answer.used_crop == bool(answer.boxes) == (answer.decision is ZoomDecision.ZOOMED)
    assert set(answer.seconds) == {"encode_image", "propose", "encode_crops", "prefill", "decode"}
    assert all(seconds >= 0 for seconds in answer.seconds.values())
