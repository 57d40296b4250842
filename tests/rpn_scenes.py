"""Questions with a learnable answer for RPN training: the labelled cells are the bright ones."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image

from data_contracts.enums import RoiLabel
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.rpn.data import TrainingExample

GRID = 5
CELL = 8
QUESTIONS = ("what is it ?", "what is the small red word ?", "red blue", "a")


def bright_patch_examples(
    num_images: int, questions_per_image: int = 1, seed: int = 0
) -> tuple[list[TrainingExample], dict[str, Image.Image]]:
    """Noise images with one bright block; (examples, images by URI)."""
    rng = np.random.default_rng(seed)
    examples: list[TrainingExample] = []
    images: dict[str, Image.Image] = {}
    for number in range(num_images):
        x, y = rng.integers(0, GRID - 1, 2)
        pixels = rng.integers(0, 90, (GRID * CELL, GRID * CELL, 3))
        pixels[y * CELL : (y + 2) * CELL, x * CELL : (x + 2) * CELL] += 160
        uri = f"image-{number}.png"
        images[uri] = Image.fromarray(pixels.astype(np.uint8))
        examples += [
            TrainingExample(
                question_id=f"{number:06x}-{turn}",
                image_uri=uri,
                image_key=f"key-{number}",
                question=QUESTIONS[(number + turn) % len(QUESTIONS)],
                labels=_labels(rng, x, y),
            )
            for turn in range(questions_per_image)
        ]
    return examples, images


def _labels(rng: np.random.Generator, x: int, y: int) -> np.ndarray:
    labels = np.zeros((GRID, GRID), dtype=np.int8)
    labels[rng.random((GRID, GRID)) < 0.2] = RoiLabel.IGNORE
    labels[y : y + 2, x : x + 2] = RoiLabel.FOREGROUND
    return labels


def randomly_labelled(
    adapter: ModelAdapter, images: Sequence[Image.Image], questions: Sequence[str]
) -> list[TrainingExample]:
    """One example per image, on the grid of the model's family; an image's URI is its index."""
    rng = np.random.default_rng(0)
    grids = [features.grid for features in adapter.encode_images(images, for_labels=True)]
    return [
        TrainingExample(
            question_id=f"{index:06x}",
            image_uri=str(index),
            image_key=str(index),
            question=question,
            labels=rng.integers(RoiLabel.BACKGROUND, RoiLabel.FOREGROUND + 1, grid).astype(np.int8),
        )
        for index, (question, grid) in enumerate(zip(questions, grids, strict=True))
    ]


def loader(images: dict[str, Image.Image]) -> partial[Image.Image]:
    """``load_image`` over images in memory."""
    return partial(_look_up, images)


def _look_up(images: dict[str, Image.Image], example: TrainingExample) -> Image.Image:
    return images[example.image_uri]


def curve(metrics: Sequence[dict[str, object]]) -> list[object]:
    """Loss of every logged step."""
    return [entry["loss"] for entry in metrics if entry["kind"] == "step"]
