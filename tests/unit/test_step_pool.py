"""Idle buffers give way to work that needs their memory. What needs a GPU: ``tests/gpu``."""

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from weakref import ref

import pytest
import torch

from sdrpn_core.decoding import step_pool
from sdrpn_core.decoding.fixed_step import FixedStep, StepShape, can_be_fixed
from sdrpn_core.decoding.growing_step import GrowingStep
from sdrpn_core.decoding.state import Decoding
from sdrpn_core.decoding.step_pool import StepPool
from sdrpn_core.generation.greedy import prefill
from sdrpn_core.generation.prompt_batch import pad_left
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from tests.patience import LeftInCycle, done_in_time
from tests.tiny_models import tiny_llava
from tests.zoom_checks import random_images


@pytest.fixture(scope="module")
def start(adapter: ModelAdapter) -> Decoding:
    (image,) = adapter.encode_images(random_images([(30, 20)]))
    with torch.inference_mode():
        return prefill(adapter, pad_left([adapter.embed_prompt("what is it ?", [image])]))


class _Hungry:
    """Work that fits only once the buffers of a pool are gone."""

    def __init__(self, pool: StepPool, error: RuntimeError | None = None) -> None:
        self.pool = pool
        self.error = error or torch.OutOfMemoryError("no room")
        self.num_tries = 0

    def __call__(self) -> str:
        self.num_tries += 1
        if self.pool._idle or self.num_tries == 1:
            raise self.error
        return "done"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")]
)
def test_work_is_done_again_without_idle_buffers(
    adapter: ModelAdapter, start: Decoding, error: RuntimeError
):
    """Idle buffers could make a batch run out of memory that had fitted before."""
    pool = StepPool(adapter.decoder)
    step = FixedStep(adapter.decoder, start, StepShape.of(start, 3))
    pool._idle[step.shape] = step
    work = _Hungry(pool)
    assert pool.with_room(work) == "done"
    assert work.num_tries == 2
    assert not pool._idle


def test_without_buffers_there_is_nothing_to_win_from_trying_again(adapter: ModelAdapter):
    pool = StepPool(adapter.decoder)
    work = _Hungry(pool)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        pool.with_room(work)
    assert work.num_tries == 1


def test_no_graph_is_made_under_autocast(adapter: ModelAdapter, start: Decoding):
    """It would go on reading casts of weights that are gone."""
    assert can_be_fixed(adapter.decoder, start)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_be_fixed(adapter.decoder, start)


def test_a_growing_cache_gets_the_room_of_idle_buffers(
    adapter: ModelAdapter, start: Decoding, monkeypatch: pytest.MonkeyPatch
):
    """The batch too large for a fixed step had to fit beside all idle ones."""
    pool = StepPool(adapter.decoder)
    step = FixedStep(adapter.decoder, start, StepShape.of(start, 3))
    pool._idle[step.shape] = step

    def growing(*arguments: object) -> GrowingStep:
        if pool._idle:
            raise torch.OutOfMemoryError("no room")
        return GrowingStep(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(step_pool, "GrowingStep", growing)
    with pool.step(start, 3) as found:
        assert isinstance(found, GrowingStep)


def test_decodings_left_in_cycles_give_their_buffers_back(
    adapter: ModelAdapter, start: Decoding, monkeypatch: pytest.MonkeyPatch
):
    """Garbage collection ended them while the pool was locked, and waited for the same lock."""
    monkeypatch.setattr(step_pool, "_room", lambda *_: float("inf"))
    pool = StepPool(adapter.decoder)

    def decoding(num_steps: int) -> Iterator[object]:
        step = pool._lend(start, StepShape.of(start, num_steps))
        assert step is not None
        try:
            yield step
        finally:
            pool._take_back(step)

    def work() -> None:
        for index in range(2000):
            LeftInCycle(decoding(250 * (index % 7 + 1)))

    done_in_time(work)
    gc.collect()
    pool._forget_idle()
    assert not pool._living


def test_idle_buffers_do_not_keep_the_model_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without garbage collection: a cycle would hold gigabytes on the device until one comes by."""
    monkeypatch.setattr(step_pool, "_room", lambda *_: float("inf"))
    adapter = load_adapter(tiny_llava(tmp_path, seed=3), device="cpu")
    (image,) = adapter.encode_images(random_images([(30, 20)]))
    with torch.inference_mode():
        start = prefill(adapter, pad_left([adapter.embed_prompt("what is it ?", [image])]))
    step = adapter.step_pool._lend(start, StepShape.of(start, 3))
    assert step is not None
    adapter.step_pool._take_back(step)
    assert adapter.step_pool._idle
    decoder = ref(adapter.decoder)
    gc.collect()
    gc.disable()
    try:
        del step, adapter
        assert decoder() is None
    finally:
        gc.enable()


def test_the_same_model_under_another_profile_shares_its_buffers(adapter: ModelAdapter):
    other = adapter.with_profile(adapter.profile.model_copy(update={"name": "other"}))
    assert other.profile.name == "other"
    assert other.decoder is adapter.decoder
    assert other.step_pool is adapter.step_pool


def test_a_model_that_is_refused_twice_is_not_recorded_any_more(
    adapter: ModelAdapter, start: Decoding, monkeypatch: pytest.MonkeyPatch
):
    """One failure may be another thread's doing: it ended graphs for as long as the model lived."""
    monkeypatch.setattr(step_pool, "_room", lambda *_: float("inf"))
    pool, shape = StepPool(adapter.decoder), StepShape.of(start, 3)
    for _ in range(step_pool.MAX_REFUSED):
        step = pool._lend(start, shape)
        assert step is not None
        step.is_refused = True
        pool._take_back(step)
    assert pool._lend(start, shape) is None


def test_batches_of_two_lengths_do_not_push_out_each_others_buffers(
    adapter: ModelAdapter, start: Decoding, monkeypatch: pytest.MonkeyPatch
):
    """Where both do not fit: the graph of each was recorded anew for every batch."""
    decoder, num_steps = adapter.decoder, (3, 300)
    short, long = (FixedStep(decoder, start, StepShape.of(start, n)) for n in num_steps)
    room = short.num_bytes + long.num_bytes
    for left, is_shared in ((room - 1, True), (room, False)):
        monkeypatch.setattr(step_pool, "_room", lambda *_, left=left: left)
        pool = StepPool(decoder)
        wide = pool._lend(start, long.shape)
        assert wide is not None
        pool._take_back(wide)
        found = pool._lend(start, short.shape)
        assert found is not None
        assert (found is wide) is is_shared
        pool._take_back(found)
        assert pool._lend(start, long.shape) is wide


def test_wider_buffers_are_lent_once_the_narrowest_first_and_never_with_other_weights(
    adapter: ModelAdapter, start: Decoding, monkeypatch: pytest.MonkeyPatch
):
    """Two decodings in one buffer would mix their answers; graphs know weights by address."""
    decoder = adapter.decoder
    short, *longer = (StepShape.of(start, num_steps) for num_steps in (3, 300, 500))
    stale, wider, widest = (FixedStep(decoder, start, shape) for shape in (longer[0], *longer))
    stale.reads = ()
    assert short.spans[0][2] < wider.shape.spans[0][2] < widest.shape.spans[0][2]
    monkeypatch.setattr(step_pool, "MAX_WIDTH", 3)
    room = step_pool._num_bytes(start, short) + wider.num_bytes
    monkeypatch.setattr(step_pool, "_room", lambda *_: room)

    def lent(*idle: FixedStep) -> list[FixedStep | None]:
        pool = StepPool(decoder)
        pool._idle.update({step.shape: step for step in idle})
        pool._living.update(idle)
        return [pool._lend(start, short) for _ in idle]

    assert lent(widest, wider)[0] is wider
    first, second = lent(wider, widest)
    assert first is wider
    assert second is not wider
    assert stale not in lent(stale, widest)


def test_buffers_much_too_wide_make_room_for_others(
    adapter: ModelAdapter, start: Decoding, monkeypatch: pytest.MonkeyPatch
):
    """All of their columns are read in every step."""
    short, long = (StepShape.of(start, num_steps) for num_steps in (3, 1000))
    pool = StepPool(adapter.decoder)
    monkeypatch.setattr(step_pool, "_room", lambda *_: step_pool._num_bytes(start, long))
    wide = pool._lend(start, long)
    assert wide is not None
    pool._take_back(wide)
    found = pool._lend(start, short)
    assert found is not None
    assert found.shape == short


@torch.inference_mode()
def test_a_step_on_wider_buffers_gives_the_same(adapter: ModelAdapter):
    (image,) = adapter.encode_images(random_images([(30, 20)]))
    found = []
    for num_steps in (3, 300):
        start = prefill(adapter, pad_left([adapter.embed_prompt("what is it ?", [image])]))
        step = FixedStep(adapter.decoder, start, StepShape.of(start, num_steps))
        step.load(start)
        tokens = start.logits.argmax(dim=-1)
        found.append(torch.stack([step.next_logits(tokens).clone() for _ in range(3)]))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_only_what_is_wider_in_every_span_of_the_same_rows_holds_a_shape():
    wanted = StepShape(2, ((0, 3, 512), (3, 8, 256)))
    assert StepShape(2, ((0, 3, 512), (3, 8, 768))).holds(wanted)
    for other in (
        StepShape(2, ((0, 3, 256), (3, 8, 768))),
        StepShape(3, ((0, 3, 512), (3, 8, 256))),
        StepShape(2, ((0, 4, 512), (4, 8, 256))),
        StepShape(2, ((0, 8, 512),)),
    ):
        assert not other.holds(wanted)


def test_a_step_is_recorded_in_a_thread_that_has_run_it(adapter: ModelAdapter, start: Decoding):
    """Buffers go from thread to thread, and a thread's first call of a library broke recording."""
    step = FixedStep(adapter.decoder, start, StepShape.of(start, 12))
    step.load(start)
    tokens = start.logits.argmax(dim=-1)
    for _ in range(4):
        assert not step._is_due
        step.next_logits(tokens)
    assert step._is_due
    for _ in range(3):  # one after the other, threads go by the same number
        with ThreadPoolExecutor(1) as other:
            assert not other.submit(lambda: step._is_due).result()
            other.submit(step.next_logits, tokens).result()
            assert not other.submit(lambda: step._is_due).result()
    assert step._is_due
