"""Pictures of questions, read and prepared ahead of the model."""

from contextlib import closing
from pathlib import Path
from threading import Event

import pytest
import torch

from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from tasks.artifacts.store import ArtifactStore
from tasks.opened_images import Row, opened_batches
from tests.mixes import write_image
from tests.tiny_models import tiny_llava


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> ModelAdapter:
    return load_adapter(tiny_llava(tmp_path_factory.mktemp("tiny")), device="cpu")


def questions(folder: Path, num_images: int) -> list[Row]:
    rows = []
    for number in range(num_images):
        path = folder / f"{number}.png"
        write_image(path, number, (40, 30 + number))
        rows.append({"image_uri": str(path), "image_sha256": None})
    return rows


def test_what_cannot_be_read_is_told_apart_and_the_others_are_as_encoded_now(
    adapter: ModelAdapter, file_store: ArtifactStore, tmp_path: Path
):
    rows = questions(tmp_path, 5)
    (tmp_path / "1.png").write_bytes(b"no picture")
    for number in (3, 4):
        (tmp_path / f"{number}.png").unlink()
    asked = [[row, {}] for row in rows]  # the second turn's image is the first's
    batches = list(opened_batches(file_store, adapter, asked, 3))
    readable = [[turns for turns, _ in batch.readable] for batch in batches]
    assert readable == [[asked[0], asked[2]], []]
    told = [(turns, reason) for batch in batches for turns, reason in batch.unreadable]
    assert [turns for turns, _ in told] == [asked[1], asked[3], asked[4]]
    assert all(reason for _, reason in told)
    pictures = [image for _, image in batches[0].readable]
    for found, expected in zip(
        batches[0].encode(adapter), adapter.encode_images(pictures, for_labels=True), strict=True
    ):
        assert torch.equal(found.tokens, expected.tokens)
    assert batches[1].encode(adapter) == []


def test_the_next_batch_is_prepared_while_the_last_is_used(
    adapter: ModelAdapter,
    file_store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    is_prepared = [Event() for _ in range(3)]
    prepare = adapter.prepare_images

    def told(images, *, for_labels: bool):
        is_prepared[images[0].height - 30].set()
        return prepare(images, for_labels=for_labels)

    monkeypatch.setattr(adapter, "prepare_images", told)
    asked = [[question] for question in questions(tmp_path, 3)]
    batches = opened_batches(file_store, adapter, asked, 1)
    with closing(batches):
        for number, batch in enumerate(batches):
            assert len(batch.readable) == 1
            if number < 2:
                assert is_prepared[number + 1].wait(60), "only prepared when asked for"
