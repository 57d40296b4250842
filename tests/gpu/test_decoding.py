"""Decoding steps as CUDA graphs: against the same steps one by one, and from several threads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sdrpn_core.decoding import step_pool
from sdrpn_core.decoding.fixed_step import FixedStep, StepShape
from sdrpn_core.decoding.growing_step import GrowingStep
from sdrpn_core.decoding.state import Decoding
from sdrpn_core.decoding.step_pool import StepPool
from sdrpn_core.generation.greedy import prefill
from sdrpn_core.generation.prompt_batch import pad_left
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from tests.families.registry import FAMILY_MODELS
from tests.zoom_checks import random_images, random_pipeline

QUESTIONS = ["what is it ?", "what is the small red word ? a a a a blue", "it", "red blue ?"]
IMAGES = random_images([(60, 40), (30, 50), (45, 45), (80, 20)])
NUM_STEPS = 12

NEEDS_GRAPHS = pytest.mark.usefixtures("cuda")


@torch.inference_mode()
def started(adapter: ModelAdapter, num_rows: int = 4) -> Decoding:
    prompts = [
        adapter.embed_prompt(question, adapter.encode_images([image]))
        for question, image in zip(QUESTIONS[:num_rows], IMAGES, strict=False)
    ]
    return prefill(adapter, pad_left(prompts))


def logits_of(step: FixedStep | GrowingStep, start: Decoding) -> torch.Tensor:
    logits, found = start.logits, []
    for _ in range(NUM_STEPS):
        logits = step.next_logits(logits.argmax(dim=-1)).clone()
        found.append(logits)
    return torch.stack(found)


@pytest.mark.parametrize("family", sorted(FAMILY_MODELS))
def test_graphs_equal_steps_one_by_one(
    family: str, cuda: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, in bfloat16 too: a replay runs the very kernels that were recorded."""
    profile = FAMILY_MODELS[family].build(tmp_path)
    for dtype in ("float32", "bfloat16"):
        adapter = load_adapter(profile, device=cuda, dtype=dtype)
        start = started(adapter)
        step = FixedStep(adapter.decoder, start, StepShape.of(start, NUM_STEPS))
        step.load(start)
        replayed = logits_of(step, start)
        assert step._graph is not None, "nothing was recorded"
        step.load(start)
        assert torch.equal(logits_of(step, start), replayed), "the second answer differs"
        with monkeypatch.context() as patch:
            patch.setattr("sdrpn_core.decoding.fixed_step._STEPS_BEFORE_CAPTURE", 10**6)
            plain = FixedStep(adapter.decoder, start, step.shape)
            plain.load(start)
            assert torch.equal(logits_of(plain, start), replayed)
        if dtype == "float32":
            growing = logits_of(GrowingStep(adapter.decoder, start, NUM_STEPS), start)
            torch.testing.assert_close(replayed, growing, atol=1e-4, rtol=1e-4)


def test_pipelines_in_threads_answer_as_alone(full: ModelAdapter, device: str) -> None:
    num_calls = 12 if device == "cuda" else 4  # the stand-in is slow, and records no graphs
    pipelines = [random_pipeline(full, seed=seed) for seed in (0, 1)]

    def answers(index: int) -> list[tuple[str, object]]:
        found = pipelines[index % 2].answer(IMAGES, QUESTIONS, max_new_tokens=NUM_STEPS)
        return [(answer.text, answer.boxes) for answer in found]

    alone = [answers(0), answers(1)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(answers, range(num_calls)))
    assert together == [alone[index % 2] for index in range(num_calls)]


@NEEDS_GRAPHS
def test_buffers_are_kept_within_their_share(
    full: ModelAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = StepPool(full.decoder)
    starts = [started(full, num_rows) for num_rows in (1, 2, 4)]
    sizes = []
    for start in starts:
        with pool.step(start, NUM_STEPS) as step:
            assert isinstance(step, FixedStep)
            sizes.append(step.num_bytes)
    assert len(pool._idle) == 3
    available = step_pool._room(full.decoder, starts[0].logits.device) / step_pool.MAX_SHARE
    monkeypatch.setattr(step_pool, "MAX_SHARE", (sizes[2] + sizes[1] + 1) / available)
    with pool.step(started(full, 3), NUM_STEPS) as step:
        assert isinstance(step, FixedStep)
    assert sum(step.num_bytes for step in pool._idle.values()) <= sizes[2] + sizes[1]
    monkeypatch.setattr(step_pool, "MAX_SHARE", 0.5 * sizes[0] / available)
    with pool.step(started(full, 1), NUM_STEPS) as step:
        assert isinstance(step, GrowingStep)


class _Asking:
    """A hook of a model that looks at a value on the host in every step."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, module: object, inputs: object, output: torch.Tensor) -> None:
        self.num_calls += int(output.isfinite().all().item())


@NEEDS_GRAPHS
def test_a_model_that_cannot_be_recorded_leaves_the_process_whole(full: ModelAdapter) -> None:
    """Memory was not given back, and random numbers not drawn, once CUDA broke a recording off."""
    expected = logits_of(GrowingStep(full.decoder, started(full), NUM_STEPS), started(full))
    pool, start = StepPool(full.decoder), started(full)
    hook = full.decoder.norm.register_forward_hook(_Asking())
    try:
        with pool.step(start, NUM_STEPS) as step:
            assert isinstance(step, FixedStep)
            torch.testing.assert_close(logits_of(step, start), expected, atol=1e-4, rtol=1e-4)
            assert step.is_refused
        for _ in range(step_pool.MAX_REFUSED - 1):
            with pool.step(another := started(full), NUM_STEPS) as step:
                logits_of(step, another)
        with pool.step(started(full), NUM_STEPS) as step:
            assert isinstance(step, GrowingStep), "recording is tried again and again"
    finally:
        hook.remove()
    assert torch.rand(3, device="cuda").isfinite().all()
    large = torch.zeros(2**28, dtype=torch.uint8, device="cuda")
    held = torch.cuda.memory_reserved()
    del large
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= held - 2**28


@NEEDS_GRAPHS
def test_what_is_in_the_buffers_is_not_held_twice(full: ModelAdapter) -> None:
    start = started(full)
    with StepPool(full.decoder).step(start, NUM_STEPS) as step:
        assert isinstance(step, FixedStep)
        assert not start.cache.layers


@NEEDS_GRAPHS
def test_two_decodings_at_once_do_not_share_buffers(full: ModelAdapter) -> None:
    pool = StepPool(full.decoder)
    one, other = started(full), started(full)
    with pool.step(one, NUM_STEPS) as first, pool.step(other, NUM_STEPS) as second:
        assert first is not second
        torch.testing.assert_close(logits_of(first, one), logits_of(second, other))
    assert len(pool._idle) == 1


@NEEDS_GRAPHS
def test_a_device_without_room_decodes_all_the_same(
    full: ModelAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_device(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(step_pool, "FixedStep", full_device)
    with StepPool(full.decoder).step(started(full), NUM_STEPS) as step:
        assert isinstance(step, GrowingStep)


@NEEDS_GRAPHS
def test_a_decoding_that_is_never_finished_gives_its_buffers_back(full: ModelAdapter) -> None:
    pool = StepPool(full.decoder)
    for _ in range(3):
        lent = pool.step(started(full), NUM_STEPS)
        assert isinstance(lent.__enter__(), FixedStep)
        del lent
    assert len(pool._living) == len(pool._idle) == 1
    assert pool._num_lent_bytes() == 0
