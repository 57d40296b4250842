"""Images of questions, read and prepared for the vision tower while the model is at work."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from sdrpn_core.images import UnreadableImage
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.images import PreparedImages
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.threads import made_ahead
from tasks.artifacts.store import ArtifactStore
from tasks.sources.files import load_image
from tasks.storage.waiting_threads import in_parallel

Row = dict[str, Any]
Turns = Sequence[Row]
"""Questions about one image, at least one."""


@dataclass(frozen=True)
class OpenedBatch:
    """Some of what was asked, in order: what has an image, and what has none and why."""

    readable: list[tuple[Turns, Image.Image]]
    unreadable: list[tuple[Turns, str]]
    prepared: PreparedImages | None
    """Of the images, as for labels; None of no images."""

    def encode(self, adapter: ModelAdapter) -> list[ImageFeatures]:
        """Features of the images."""
        return [] if self.prepared is None else adapter.encode_prepared(self.prepared)

    def parts(self, adapter: ModelAdapter, size: int) -> list["OpenedBatch"]:
        """The readable ones in batches of at most ``size``."""
        starts = range(0, len(self.readable), size)
        return [_prepared(adapter, self.readable[start : start + size], []) for start in starts]


def opened_batches(
    store: ArtifactStore, adapter: ModelAdapter, asked: Sequence[Turns], batch_size: int
) -> Generator[OpenedBatch, None, None]:
    """Read images batch by batch, each batch while the last one is worked on.

    Args:
        store: reads image URIs.
        adapter: prepares the images.
        asked: questions, those about one image together; rows with ``image_uri`` and
            ``image_sha256``.
        batch_size: images at a time.
    """

    def opened(batch: Sequence[Turns]) -> OpenedBatch:
        images = in_parallel(lambda turns: _open(store, turns[0]), batch)
        found = list(zip(batch, images, strict=True))
        readable = [(turns, image) for turns, image in found if isinstance(image, Image.Image)]
        unreadable = [(turns, reason) for turns, reason in found if isinstance(reason, str)]
        return _prepared(adapter, readable, unreadable)

    starts = range(0, len(asked), batch_size)
    return made_ahead(opened, (asked[start : start + batch_size] for start in starts))


def _prepared(
    adapter: ModelAdapter,
    readable: list[tuple[Turns, Image.Image]],
    unreadable: list[tuple[Turns, str]],
) -> OpenedBatch:
    pictures = [image for _, image in readable]
    prepared = adapter.prepare_images(pictures, for_labels=True) if pictures else None
    return OpenedBatch(readable, unreadable, prepared)


def _open(store: ArtifactStore, row: Row) -> Image.Image | str:
    """The image, or why it cannot be read."""
    try:
        return load_image(store, row["image_uri"], row["image_sha256"])
    except UnreadableImage as error:
        return str(error)
