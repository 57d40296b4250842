"""The images of a call: turned upright, prepared ahead of the model, encoded once each."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from PIL import Image

from sdrpn_core.images import UnreadableImage, upright_rgb
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.images import PreparedImages
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.threads import in_threads, made_ahead


@dataclass(frozen=True)
class EncodedImage:
    """An upright image and what the decoder gets of it."""

    image: Image.Image
    features: ImageFeatures


def batches_by_image(images: Sequence[Image.Image], batch_size: int) -> list[list[int]]:
    """Indices of questions, those about one image next to each other, images as they appear."""
    first_seen: dict[int, int] = {}
    for index, image in enumerate(images):
        first_seen.setdefault(id(image), index)
    order = sorted(range(len(images)), key=lambda index: first_seen[id(images[index])])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def encoded_batches(
    adapter: ModelAdapter, images: Sequence[Image.Image], batches: Sequence[Sequence[int]]
) -> Generator[list[EncodedImage], None, None]:
    """The encoded image of every question, batch by batch.

    The next batch's images are prepared in a thread while the last one is answered. An image whose
    questions fall into two batches is encoded once.

    Args:
        adapter: the model.
        images: one per question, the same object where it is the same image.
        batches: as made by ``batches_by_image``.

    Raises:
        UnreadableImage: if an image is damaged, when its batch's turn comes.
    """
    distinct = [{id(images[index]): index for index in batch} for batch in batches]
    new = [
        {key: index for key, index in own.items() if key not in last}
        for last, own in zip([{}, *distinct], distinct, strict=False)
    ]
    known: dict[int, EncodedImage] = {}
    with closing(made_ahead(partial(_prepare, adapter, images), new)) as prepared:
        for batch, own in zip(batches, distinct, strict=True):
            known = {key: known[key] for key in own if key in known}  # the others are let go of
            known.update(_encode(adapter, next(prepared)))
            yield [known[id(images[index])] for index in batch]


@dataclass(frozen=True)
class _Prepared:
    """Images by ``id`` of the caller's object, upright and as the tower takes them."""

    upright: dict[int, Image.Image]
    inputs: PreparedImages | None
    """None of no images."""


def _prepare(
    adapter: ModelAdapter, images: Sequence[Image.Image], new: dict[int, int]
) -> _Prepared:
    upright = in_threads(partial(_upright, images), new.values())
    inputs = adapter.prepare_images(upright) if new else None
    return _Prepared(dict(zip(new, upright, strict=True)), inputs)


def _encode(adapter: ModelAdapter, fresh: _Prepared) -> dict[int, EncodedImage]:
    inputs = fresh.inputs
    if inputs is None:
        return {}
    features = adapter.step_pool.with_room(lambda: adapter.encode_prepared(inputs))
    return {
        key: EncodedImage(image, encoded)
        for (key, image), encoded in zip(fresh.upright.items(), features, strict=True)
    }


def _upright(images: Sequence[Image.Image], index: int) -> Image.Image:
    try:
        return upright_rgb(images[index])
    except UnreadableImage as error:
        raise UnreadableImage(f"image {index}: {error}") from error
