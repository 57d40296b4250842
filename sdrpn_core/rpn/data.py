"""Training examples: which are trained on, which choose the threshold, in what order they come.

Everything here is a function of the examples and the seed, so a resumed run meets the same batches.
Examples wait in a database on disk: memory holds those of a batch, and eight bytes of each for the
order of an epoch.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from data_contracts.base import Settings
from data_contracts.enums import RoiLabel
from data_contracts.errors import SdrpnError
from data_contracts.training import TrainingConfig
from sdrpn_core.temporary_database import TemporaryDatabase

ImageLoader = Callable[["TrainingExample"], Image.Image]
"""Upright RGB image of an example."""

_TABLES = """
CREATE TABLE example (
    question_id TEXT, image_uri TEXT, image_key TEXT, question TEXT,
    height INTEGER, width INTEGER, labels BLOB, has_foreground INTEGER
);
CREATE TABLE image (image_key TEXT PRIMARY KEY, is_held_out INTEGER) WITHOUT ROWID;
"""
_ADD = "INSERT INTO example VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_HOLD_OUT = """
INSERT INTO image
SELECT image_key, row_number() OVER (ORDER BY seeded_digest(image_key)) <= ?
FROM (SELECT DISTINCT image_key FROM example)
"""
_PART = """
CREATE TABLE {name} AS
SELECT example.rowid AS example FROM example JOIN image USING (image_key)
WHERE is_held_out = {is_held_out} ORDER BY question_id, example.rowid
"""
_COLUMNS = "question_id, image_uri, image_key, question, height, width, labels"


class TrainingError(SdrpnError):
    """Training cannot start or go on; the message says what to change."""


FeatureKey = tuple[str, str]
"""All that the frozen model sees of an example: picture and question."""


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
    def feature_key(self) -> FeatureKey:
        """Equal for examples of equal features; ids need not tell those of two mixes apart."""
        return self.image_key, self.question

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


class StoredExamples(Sequence[TrainingExample]):
    """A part of the examples in a database, in the order of their questions' ids."""

    def __init__(self, database: TemporaryDatabase, name: str, *, is_held_out: bool) -> None:
        """Select them.

        Args:
            database: with the examples, and which images are held out.
            name: of the table that is created for their order.
            is_held_out: whether they are those of the images held out, or all others.
        """
        self._database = database
        self._name = name
        self._rows = f"FROM {name} JOIN example ON example.rowid = {name}.example"
        database.execute(_PART.format(name=name, is_held_out=int(is_held_out)))
        self._length = _number(database, f"SELECT count(*) FROM {name}")

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, place: int) -> TrainingExample: ...

    @overload
    def __getitem__(self, place: slice) -> list[TrainingExample]: ...

    def __getitem__(self, place: int | slice) -> TrainingExample | list[TrainingExample]:
        places = range(self._length)[place]
        return self._at(places) if isinstance(places, int) else [self._at(one) for one in places]

    def __iter__(self) -> Iterator[TrainingExample]:
        query = f"SELECT {_COLUMNS} {self._rows} ORDER BY {self._name}.rowid"
        return (_read(row) for row in self._database.execute(query))

    @property
    def have_foreground(self) -> bool:
        """Whether there is a foreground cell in any of them."""
        return bool(_number(self._database, f"SELECT total(has_foreground) > 0 {self._rows}"))

    def _at(self, place: int) -> TrainingExample:
        query = f"SELECT {_COLUMNS} {self._rows} WHERE {self._name}.rowid = ?"
        return _read(self._database.execute(query, (place + 1,)).fetchone())


@dataclass(frozen=True)
class DataSplit:
    """Training and validation examples without a common image."""

    train: StoredExamples
    validation: StoredExamples
    sizes: DatasetSizes


def split_examples(examples: Iterable[TrainingExample], config: TrainingConfig) -> DataSplit:
    """Hold out a share of the images: the ones with the smallest seeded digests.

    Questions about one image never part: a validation image was never trained on.

    Raises:
        TrainingError: if fewer than two images have labels, or validation lacks foreground.
    """
    database = TemporaryDatabase(_TABLES)
    num_examples = 0
    for num_examples, example in enumerate(examples, start=1):  # noqa: B007
        if example.num_valid_cells:
            database.execute(_ADD, _stored(example))
    num_images = _number(database, "SELECT count(DISTINCT image_key) FROM example")
    if num_images < 2:
        raise TrainingError(
            f"{num_images} of the images have labels, training needs at least 2: use more records "
            "or looser label settings"
        )
    num_held_out = config.num_held_out(num_images)
    database.create_function("seeded_digest", 1, partial(_digest, config.seed), deterministic=True)
    database.execute(_HOLD_OUT, (num_held_out,))
    train = StoredExamples(database, "train", is_held_out=False)
    validation = StoredExamples(database, "validation", is_held_out=True)
    if not validation.have_foreground:
        raise TrainingError(
            f"no foreground in the {len(validation)} validation examples, so no threshold can be "
            "chosen: use more records or another training.seed"
        )
    sizes = DatasetSizes(
        num_examples=num_examples,
        num_without_labels=num_examples - len(train) - len(validation),
        num_train=len(train),
        num_validation=len(validation),
        num_train_images=num_images - num_held_out,
        num_validation_images=num_held_out,
    )
    return DataSplit(train, validation, sizes)


def num_batches_per_epoch(num_examples: int, batch_size: int) -> int:
    """Whole batches in an epoch; a data set smaller than a batch is one batch."""
    return max(num_examples // batch_size, 1)


def epoch_batch(num_examples: int, batch_size: int, seed: int, epoch: int, place: int) -> list[int]:
    """Indices of one batch of an epoch, shuffled by (seed, epoch) alone.

    All batches have the same size; the examples left over differ from epoch to epoch.
    """
    order = _epoch_order(num_examples, seed, epoch)
    batch: list[int] = order[place * batch_size : (place + 1) * batch_size].tolist()
    return batch


@lru_cache(maxsize=1)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int(_digest(seed, f"epoch {epoch}")[:15], 16))
    return torch.randperm(num_examples, generator=generator)


def examples_digest(examples: Iterable[TrainingExample]) -> str:
    """Digest of everything about the examples that training depends on."""
    digest = hashlib.sha256()
    for example in examples:
        parts = (example.question_id, example.image_key, example.question, example.labels.shape)
        digest.update(repr(parts).encode())
        digest.update(np.ascontiguousarray(example.labels).tobytes())
    return digest.hexdigest()


def _digest(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()


def _stored(example: TrainingExample) -> tuple[object, ...]:
    height, width = example.labels.shape
    labels = np.ascontiguousarray(example.labels, np.int8).tobytes()
    has_foreground = bool((example.labels == RoiLabel.FOREGROUND).any())
    names = (example.question_id, example.image_uri, example.image_key, example.question)
    return *names, height, width, labels, has_foreground


def _read(row: tuple[Any, ...]) -> TrainingExample:
    question_id, image_uri, image_key, question, height, width, stored = row
    # A copy, because torch wants arrays that may be written to.
    labels = np.frombuffer(stored, np.int8).reshape(height, width).copy()
    return TrainingExample(question_id, image_uri, image_key, question, labels)


def _number(database: TemporaryDatabase, query: str) -> int:
    return int(database.execute(query).fetchone()[0])
