"""Held-out questions about images that are trained on too: their figures tell nothing new."""

import logging
from collections.abc import Iterator, Mapping

import polars as pl

from data_contracts.artifact import ArtifactRef
from data_contracts.enums import RecordStatus
from tasks.artifacts.store import ArtifactStore

log = logging.getLogger(__name__)


def warn_of_trained_images(
    store: ArtifactStore, held_out: Mapping[str, ArtifactRef], trained: Mapping[str, ArtifactRef]
) -> None:
    """Say which sources of an evaluation ask about images of those that are trained on.

    Args:
        store: where the questions are.
        held_out: questions of each source that is evaluated; their images are held in memory.
        trained: questions of each source that is trained on.
    """
    asked = {name: set[str]().union(*_images(store, ref)) for name, ref in held_out.items()}
    for source, questions in trained.items():
        both: dict[str, set[str]] = {name: set() for name in asked}
        for some in _images(store, questions):
            for name, images in asked.items():
                both[name] |= images & some
        for name in filter(both.get, both):
            log.warning(
                "%d of the %d images of source %r, which is evaluated, are also those of source "
                "%r, which is trained on: its figures are not of new images alone; keep the two "
                "apart, by `selection` or, of scenes, by `split`",
                len(both[name]),
                len(asked[name]),
                name,
                source,
            )


def _images(store: ArtifactStore, questions: ArtifactRef) -> Iterator[set[str]]:
    """Digests of the images that are asked about, shard by shard."""
    is_asked = pl.col("status") == RecordStatus.OK.value
    for frame in store.all_frames(store.manifest(questions), ["status", "image_sha256"]):
        yield set(frame.filter(is_asked)["image_sha256"])
