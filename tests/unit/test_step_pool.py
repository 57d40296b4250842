"""Idle buffers give way to work that needs their memory. What needs a GPU: ``tests/gpu``."""

import pytest
import torch

from sdrpn_core.decode_steps import FixedStep, StepShape, can_be_fixed
from sdrpn_core.decoding import Decoding
from sdrpn_core.generation import pad_left, prefill
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.step_pool import StepPool
from tests.tiny_models import tiny_llava
from tests.zoom_checks import random_images


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> ModelAdapter:
    return load_adapter(tiny_llava(tmp_path_factory.mktemp("llava"), seed=3), device="cpu")


@pytest.fixture(scope="module")
def start(adapter: ModelAdapter) -> Decoding:
    (image,) = adapter.encode_images(random_images([(30, 20)]))
    with torch.inference_mode():
        return prefill(adapter, pad_left([adapter.embed_prompt("what is it ?", [image])]))


class _Hungry:
    """Work that fits only once the buffers of a pool are gone."""

    def __init__(self, pool: StepPool) -> None:
        self.pool = pool
        self.num_tries = 0

    def __call__(self) -> str:
        self.num_tries += 1
        if self.pool._idle or self.num_tries == 1:
            raise torch.OutOfMemoryError("no room")
        return "done"


def test_work_is_done_again_without_idle_buffers(adapter: ModelAdapter, start: Decoding):
    """Idle buffers could make a batch run out of memory that had fitted before."""
    pool = StepPool()
    step = FixedStep(adapter, start, StepShape.of(start, 3))
    pool._idle[step.shape] = step
    work = _Hungry(pool)
    assert pool.with_room(work) == "done"
    assert work.num_tries == 2
    assert not pool._idle


def test_without_buffers_there_is_nothing_to_win_from_trying_again():
    pool = StepPool()
    work = _Hungry(pool)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        pool.with_room(work)
    assert work.num_tries == 1


def test_no_graph_is_made_under_autocast(adapter: ModelAdapter, start: Decoding):
    """It would go on reading casts of weights that are gone."""
    assert can_be_fixed(adapter, start)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_be_fixed(adapter, start)
