"""Images of a call: decoded once each, ahead of the model, several at a time where that is safe."""

import io
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from sdrpn_core.encoded_images import batches_by_image, encoded_batches
from sdrpn_core.images import UnreadableImage
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.threads import in_threads, made_ahead
from tests.tiny_models import tiny_llava
from tests.zoom_checks import random_images

NUM_PAGES = 80


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> ModelAdapter:
    return load_adapter(tiny_llava(tmp_path_factory.mktemp("llava"), seed=3), device="cpu")


def test_batches_keep_questions_about_an_image_together():
    one, two, three = random_images([(9, 9), (8, 8), (7, 7)])
    assert batches_by_image([one, two, one, three, two, one], 4) == [[0, 2, 5, 1], [4, 3]]
    assert batches_by_image([], 4) == []


def test_pages_read_lazily_through_one_file_are_not_mixed_up(
    adapter: ModelAdapter, monkeypatch: pytest.MonkeyPatch
):
    """Threads moved the position in the file that others were reading at."""
    monkeypatch.setattr("sdrpn_core.threads._num_cores", lambda: 8)
    pages = random_images([(400, 300)] * NUM_PAGES)
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:], compression="raw")
    lazy = []
    for number in range(NUM_PAGES):
        file.seek(0)
        page = Image.open(file)
        page.seek(number)
        lazy.append(page)
    assert len({id(page.fp) for page in lazy}) == 1  # type: ignore[attr-defined]
    (rows,) = encoded_batches(adapter, lazy, [list(range(NUM_PAGES))])
    for row, page in zip(rows, pages, strict=True):
        np.testing.assert_array_equal(np.asarray(row.image), np.asarray(page))


def test_a_damaged_image_is_reported_when_its_batch_comes(adapter: ModelAdapter):
    good, also = random_images([(20, 20), (30, 20)])
    file = io.BytesIO()
    also.save(file, "PNG")
    damaged = Image.open(io.BytesIO(file.getvalue()[:-40]))
    batches = encoded_batches(adapter, [good, damaged], [[0], [1]])
    assert next(batches)[0].image.size == good.size
    with pytest.raises(UnreadableImage, match="image 1: damaged PNG"):
        next(batches)


def test_the_next_is_made_while_the_last_is_used():
    is_made = [threading.Event() for _ in range(3)]

    def make(index: int) -> int:
        is_made[index].set()
        return index

    results = made_ahead(make, range(3))
    assert not is_made[0].is_set(), "nobody has asked yet"
    for index, result in enumerate(results):
        assert result == index
        if index < 2:
            assert is_made[index + 1].wait(60), "only made when asked for"
    assert list(made_ahead(make, [])) == []


def test_what_goes_wrong_ahead_is_raised_in_its_turn():
    def make(index: int) -> int:
        if index == 1:
            raise ValueError("one is wrong")
        return index

    results = made_ahead(make, range(3))
    assert next(results) == 0
    with pytest.raises(ValueError, match="one is wrong"):
        next(results)


def test_closing_takes_nothing_more():
    taken = []

    def items() -> Iterator[int]:
        for index in range(5):
            taken.append(index)
            yield index

    results = made_ahead(lambda index: index, items())
    assert next(results) == 0
    results.close()
    assert taken == [0, 1]


def test_threads_are_no_more_than_the_cores_of_this_process(monkeypatch: pytest.MonkeyPatch):
    """All cores of the machine were counted, also in a container that may use two."""
    monkeypatch.setattr("sdrpn_core.threads.os.sched_getaffinity", lambda _: {3}, raising=False)
    names = in_threads(lambda _: threading.current_thread().name, range(4))
    assert set(names) == {threading.current_thread().name}
