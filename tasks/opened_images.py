"""Images of questions, read and prepared for the vision tower while the model is at work.

Only what the tower gets is kept: a photograph of 8K takes 100 MB, and twice that as it is decoded.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from sdrpn_core.images import UnreadableImage, decode_image
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.images import PreparedImages
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.threads import in_parallel, in_threads, made_ahead
from tasks.artifacts.store import ArtifactStore
from tasks.sources.files import image_bytes

Row = dict[str, Any]
Turns = Sequence[Row]
"""Questions about one image, at least one."""
Opened = tuple[Turns, PreparedImages]
"""Questions with their image, as for labels."""


@dataclass(frozen=True)
class OpenedBatch:
    """Some of what was asked, in order: what has an image, and what has none and why."""

    readable: list[Opened]
    unreadable: list[tuple[Turns, str]]


def encoded(adapter: ModelAdapter, opened: Sequence[Opened]) -> list[ImageFeatures]:
    """Features of images, at least one."""
    return adapter.encode_prepared(PreparedImages.joined([image for _, image in opened]))


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

    def read(turns: Turns) -> bytes | str:
        """The image's file, or why it cannot be had."""
        try:
            return image_bytes(store, turns[0]["image_uri"], turns[0]["image_sha256"])
        except UnreadableImage as error:
            return str(error)

    def prepared(data: bytes | str) -> PreparedImages | str:
        if isinstance(data, str):
            return data
        try:
            return adapter.prepare_images([decode_image(data)], for_labels=True)
        except UnreadableImage as error:
            return str(error)

    def batch_of(asked: Sequence[Turns]) -> OpenedBatch:
        # In few threads: each keeps some of the memory that its pictures took.
        pictures = in_threads(prepared, in_parallel(read, asked))
        found = list(zip(asked, pictures, strict=True))
        return OpenedBatch(
            readable=[(turns, one) for turns, one in found if not isinstance(one, str)],
            unreadable=[(turns, one) for turns, one in found if isinstance(one, str)],
        )

    starts = range(0, len(asked), batch_size)
    return made_ahead(batch_of, (asked[start : start + batch_size] for start in starts))
