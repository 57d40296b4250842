"""Images of a call: decoded once each, ahead of the model, several at a time where that is safe."""

import asyncio
import gc
import io
import threading
from collections.abc import Iterator
from contextlib import suppress
from weakref import ref

import numpy as np
import pytest
from PIL import Image

from sdrpn_core.images import UnreadableImage
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.threads import in_threads, made_ahead
from sdrpn_core.zoom.encoded_images import batches_by_image, encoded_batches
from tests.patience import LeftInCycle, done_in_time, wait_until
from tests.zoom_checks import random_images, random_pipeline

NUM_PAGES = 80


def test_batches_keep_questions_about_an_image_together():
    one, two, three = random_images([(9, 9), (8, 8), (7, 7)])
    assert batches_by_image([one, two, one, three, two, one], 4) == [[0, 2, 5, 1], [4, 3]]
    assert batches_by_image([], 4) == []


def test_pages_read_lazily_through_one_file_are_not_mixed_up(
    adapter: ModelAdapter, monkeypatch: pytest.MonkeyPatch
):
    """Threads moved the position in the file that others were reading at."""
    monkeypatch.setattr("sdrpn_core.threads.num_cores", lambda: 8)
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


def test_a_failed_call_holds_its_images_no_longer(adapter: ModelAdapter):
    """Until garbage was collected: a server that is sent damaged files grew by all that came with
    them."""
    pipeline = random_pipeline(adapter)
    images = [*random_images([(30, 20), (20, 30)]), Image.new("F", (9, 9))]
    held = [ref(image) for image in images]
    gc.collect()
    gc.disable()
    try:
        with suppress(UnreadableImage):
            pipeline.answer(images, ["it", "is", "red"])
            pytest.fail("the last image was not refused")
        del images
        wait_until(lambda: not any(image() for image in held))  # a thread may be about to end
    finally:
        gc.enable()


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


def test_streams_left_in_cycles_do_not_hang(adapter: ModelAdapter, monkeypatch: pytest.MonkeyPatch):
    """Garbage collection ended them in threads that it then waited for."""
    monkeypatch.setattr("sdrpn_core.threads.num_cores", lambda: 8)
    images = random_images([(200, 150)] * 24)

    def work() -> None:
        for _ in range(100):
            LeftInCycle(encoded_batches(adapter, images, [[0], list(range(1, 24))]))

    done_in_time(work)


class _Slow(Image.Image):
    """An image that is not read before it is let."""

    def __init__(self, image: Image.Image, may_be_read: threading.Event) -> None:
        super().__init__()
        self.image = image
        self.may_be_read = may_be_read
        self.is_being_read = threading.Event()

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size

    def load(self):
        self.is_being_read.set()
        assert self.may_be_read.wait(600)
        self._im, self._mode, self._size = self.image.im, self.image.mode, self.image.size
        return super().load()


def test_a_stream_that_is_left_does_not_wait_for_the_next_batch(adapter: ModelAdapter):
    """The event loop stood still while pictures were read that nobody wanted any more."""
    now, later = random_images([(40, 30), (60, 50)])
    may_be_read = threading.Event()
    slow = _Slow(later, may_be_read)
    pipeline = random_pipeline(adapter)

    async def leave() -> None:
        pieces = pipeline.astream([now, slow], ["it", "is"], max_new_tokens=2, batch_size=1)
        await anext(pieces)
        await asyncio.to_thread(slow.is_being_read.wait, 120)
        await pieces.aclose()  # type: ignore[attr-defined]

    done_in_time(lambda: asyncio.run(leave()))
    other = random_pipeline(adapter)
    done_in_time(lambda: other.answer([later], ["is"], max_new_tokens=2))  # it waited as well
    assert not may_be_read.is_set()
    may_be_read.set()
    again = pipeline.answer([slow], ["is"], max_new_tokens=2)
    assert again[0].text == pipeline.answer([later], ["is"], max_new_tokens=2)[0].text
