"""Pictures of questions, read and prepared ahead of the model."""

import gc
import weakref
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest
import torch
from PIL import Image

from data_contracts.enums import QuestionKind
from sdrpn_core.extraction.generated_answers import (
    ExtractedAttention,
    Request,
    extract_attention,
)
from sdrpn_core.images import decode_image
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.prompts import ImageFeatures
from tasks.artifacts.device_memory import BatchSize
from tasks.artifacts.store import ArtifactStore
from tasks.attention_rows import attention_rows
from tasks.opened_images import Row, Turns, encoded, opened_batches
from tasks.sources.files import load_image
from tests.mixes import write_image
from tests.tiny_models import tiny_llava

_OF_NO_INTEREST = {"dataset": "seen", "kind": "textual", "answers": []}


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
    pictures = [load_image(file_store, rows[n]["image_uri"], None) for n in (0, 2)]
    for found, expected in zip(
        encoded(adapter, batches[0].readable),
        adapter.encode_images(pictures, for_labels=True),
        strict=True,
    ):
        assert torch.equal(found.tokens, expected.tokens)
    assert batches[1].readable == []


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


def test_no_more_pictures_are_open_than_there_are_cores(
    adapter: ModelAdapter,
    file_store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Two batches were: 96 photographs of 8K took 11 GB of memory, in batches of 32."""
    alive: list[int] = []
    opened: list[weakref.ref[Image.Image]] = []

    def num_open() -> int:
        return sum(picture() is not None for picture in opened)

    def told(data: bytes) -> Image.Image:
        picture = decode_image(data)
        opened.append(weakref.ref(picture))
        alive.append(num_open())
        return picture

    monkeypatch.setattr("tasks.opened_images.decode_image", told)
    monkeypatch.setattr("sdrpn_core.threads.num_cores", lambda: 2)
    asked = [[question] for question in questions(tmp_path, 24)]
    features = []
    for batch in opened_batches(file_store, adapter, asked, 8):
        features += encoded(adapter, batch.readable)
        gc.collect()
    assert len(alive) == len(features) == 24
    assert max(alive) <= 2
    assert num_open() == 0


def test_a_batch_that_is_too_large_for_the_device_is_read_in_parts(
    adapter: ModelAdapter, file_store: ArtifactStore, tmp_path: Path
):
    """One batch with large pictures or long answers ended a night's run."""
    rows = questions(tmp_path, 5)
    (tmp_path / "1.png").write_bytes(b"no picture")
    asked = [
        [{**row, "question_id": row["image_uri"], "question": "what is it ?"} | _OF_NO_INTEREST]
        for row in rows
    ]
    sizes = []

    def extract(
        batch: Sequence[Turns], features: Sequence[ImageFeatures]
    ) -> list[list[ExtractedAttention]]:
        sizes.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        requests = [
            Request(None, turn["question"], QuestionKind(turn["kind"])) for (turn,) in batch
        ]
        found = extract_attention(adapter, requests, max_new_tokens=3, features=features)
        return [[maps] for maps in found]

    most = 5
    expected = list(attention_rows(file_store, adapter, asked, 5, extract, BatchSize(5)))
    most = 1
    fitting = BatchSize(5)
    found = list(attention_rows(file_store, adapter, asked, 5, extract, fitting))
    assert sizes == [4, 4, 2, 1, 1, 1, 1]
    assert fitting.measured == {"batch_size": (1,)}
    assert [row["question_id"] for row in found] == [row["question_id"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["response"] == other["response"]
        assert one["status"] == other["status"]
        assert one["grounding"] == pytest.approx(other["grounding"], abs=1e-6)
