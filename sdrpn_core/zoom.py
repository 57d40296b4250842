"""Answering with an image and given crops from scratch, nothing proposed and nothing reused."""

from collections.abc import Sequence

import torch
from PIL import Image

from sdrpn_core.generation import Response, greedy_decode, pad_left, prefill
from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures


@torch.inference_mode()
def answer_plain(
    adapter: ModelAdapter,
    questions: Sequence[str],
    images: Sequence[Sequence[ImageFeatures]],
    *,
    max_new_tokens: int,
) -> list[Response]:
    """Answer from scratch: each question with its image and any crops, nothing reused."""
    prompts = [
        adapter.embed_prompt(question, row) for question, row in zip(questions, images, strict=True)
    ]
    return greedy_decode(adapter, prefill(adapter, pad_left(prompts)), max_new_tokens)


def crop_image(image: Image.Image, box: BoxXYXY) -> Image.Image:
    """Cut a source-pixel box out of an image; never empty."""
    return image.crop(box.to_pixels(image.size))
