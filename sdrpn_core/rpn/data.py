"""Training examples: which are trained on, which choose the threshold, in what order they come.

Everything here is a function of the examples and the seed, so a resumed run meets the same batches.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from data_contracts.base import Settings
from data_contracts.enums import RoiLabel
from data_contracts.errors import SdrpnError
from data_contracts.training import TrainingConfig

ImageLoader = Callable[[str], Image.Image]
"""Image URI -> upright RGB image."""


class TrainingError(SdrpnError):
    """Training cannot start or go on; the message says what to change."""


@dataclass(frozen=True)
class TrainingExample:
    """One question about one image, with its pseudo-label."""

    question_id: str
    image_uri: str
    image_key: str
    """Equal for the same picture: the image's digest, or its URI where there is none."""
    question: str
    labels: NDArray[np.int8]
    """(h, w) of ``RoiLabel`` values."""

    @property
    def num_valid_cells(self) -> int:
        """Cells that are foreground or background."""
        return int((self.labels != RoiLabel.IGNORE).sum())


class DatasetSizes(Settings):
    """What a network was trained on."""

    num_examples: int = Field(ge=0)
    num_without_labels: int = Field(ge=0)
    """Examples with every cell ignored: their loss is zero, so they are not run."""
    num_train: int = Field(ge=0)
    num_validation: int = Field(ge=0)
    num_train_images: int = Field(ge=0)
    num_validation_images: int = Field(ge=0)


@dataclass(frozen=True)
class DataSplit:
    """Training and validation examples without a common image."""

    train: tuple[TrainingExample, ...]
    validation: tuple[TrainingExample, ...]
    sizes: DatasetSizes


def split_examples(examples: Sequence[TrainingExample], config: TrainingConfig) -> DataSplit:
    """Hold out a share of the images: the ones with the smallest seeded digests.

    Questions about one image never part: a validation image was never trained on.

    Raises:
        TrainingError: if fewer than two images have labels, or validation lacks foreground.
    """
    usable = sorted(
        (example for example in examples if example.num_valid_cells), key=lambda e: e.question_id
    )
    keys = sorted({example.image_key for example in usable}, key=lambda k: _digest(config.seed, k))
    if len(keys) < 2:
        raise TrainingError(
            f"{len(keys)} of the images have labels, training needs at least 2: use more records "
            "or looser label settings"
        )
    num_held_out = min(max(round(config.validation_ratio * len(keys)), 1), len(keys) - 1)
    held_out = set(keys[:num_held_out])
    train = tuple(example for example in usable if example.image_key not in held_out)
    validation = tuple(example for example in usable if example.image_key in held_out)
    if not any((example.labels == RoiLabel.FOREGROUND).any() for example in validation):
        raise TrainingError(
            f"no foreground in the {len(validation)} validation examples, so no threshold can be "
            "chosen: use more records or another training.seed"
        )
    sizes = DatasetSizes(
        num_examples=len(examples),
        num_without_labels=len(examples) - len(usable),
        num_train=len(train),
        num_validation=len(validation),
        num_train_images=len(keys) - num_held_out,
        num_validation_images=num_held_out,
    )
    return DataSplit(train, validation, sizes)


def num_batches_per_epoch(num_examples: int, batch_size: int) -> int:
    """Whole batches in an epoch; a data set smaller than a batch is one batch."""
    return max(num_examples // batch_size, 1)


@lru_cache(maxsize=1)
def epoch_batches(
    num_examples: int, batch_size: int, seed: int, epoch: int
) -> tuple[tuple[int, ...], ...]:
    """Indices of each batch of an epoch, shuffled by (seed, epoch) alone.

    All batches have the same size; the examples left over differ from epoch to epoch.
    """
    generator = torch.Generator().manual_seed(int(_digest(seed, f"epoch {epoch}")[:15], 16))
    order = torch.randperm(num_examples, generator=generator).tolist()
    return tuple(
        tuple(order[batch * batch_size : (batch + 1) * batch_size])
        for batch in range(num_batches_per_epoch(num_examples, batch_size))
    )


def examples_digest(examples: Sequence[TrainingExample]) -> str:
    """Digest of everything about the examples that training depends on."""
    digest = hashlib.sha256()
    for example in examples:
        parts = (example.question_id, example.image_key, example.question, example.labels.shape)
        digest.update(repr(parts).encode())
        digest.update(np.ascontiguousarray(example.labels).tobytes())
    return digest.hexdigest()


def _digest(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
