"""The zoom pipeline: batches, shared images, streaming, threads."""

import asyncio
import gc
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

from data_contracts.enums import ZoomDecision
from sdrpn_core.decoding.state import Decoding
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.images import PreparedImages
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.profiles import load_profile
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.reference.scenes import make_scene
from sdrpn_core.zoom.answers import TextPiece, ZoomAnswer
from sdrpn_core.zoom.crop_masks import shown_cells
from sdrpn_core.zoom.first_stage import FirstStage, first_stage
from sdrpn_core.zoom.second_stage import second_stage_prefill
from tests.zoom_checks import (
    EVERY_REGION,
    check_batched_equals_alone,
    encode_crops,
    random_images,
    random_pipeline,
)

SIZES = [(60, 40), (30, 50), (45, 45), (80, 20), (64, 64), (50, 90)]
QUESTIONS = [
    "what is it ?",
    "what is the small red word ? a a a a blue",
    "it",
    "red blue ?",
    "the word",
    "a small a",
]
MAX_NEW_TOKENS = 8


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return random_images(SIZES)


def same(one: Sequence[ZoomAnswer], other: Sequence[ZoomAnswer]) -> bool:
    return [(a.text, a.boxes) for a in one] == [(a.text, a.boxes) for a in other]


def test_batched_equals_one_by_one_with_any_number_of_crops(
    adapter: ModelAdapter, images: list[Image.Image]
):
    counts = check_batched_equals_alone(random_pipeline(adapter), images, QUESTIONS)
    assert len(counts) >= 3, counts
    some = random_pipeline(adapter, max_box_area_ratio=0.04)
    assert set(check_batched_equals_alone(some, images, QUESTIONS)) == {0, 1}


@pytest.mark.parametrize(("threshold", "num_crops"), [(0.0, 0), (1.0, 0)])
def test_no_crops_at_all(
    adapter: ModelAdapter, images: list[Image.Image], threshold: float, num_crops: int
):
    counts = check_batched_equals_alone(
        random_pipeline(adapter, threshold=threshold), images, QUESTIONS
    )
    assert set(counts) == {num_crops}


def test_batched_equals_one_by_one_on_the_reference_model():
    scenes = [make_scene(7_000_000 + index) for index in range(4)]
    pairs = [(scene.image, turn.question) for scene in scenes for turn in scene.turns[:2]]
    adapter = load_adapter(load_profile("reference"), device="cpu")
    pipeline = random_pipeline(adapter, threshold=0.97)
    images, questions = zip(*pairs, strict=True)
    counts = check_batched_equals_alone(pipeline, images, questions, max_new_tokens=6)
    assert len(counts) >= 2, counts


class _Counted:
    """Counts the images that go through the vision tower."""

    def __init__(self, adapter: ModelAdapter, patch: pytest.MonkeyPatch) -> None:
        self.sizes: list[list[tuple[int, int]]] = []
        original = adapter.encode_prepared

        def counted(prepared: PreparedImages) -> list[ImageFeatures]:
            self.sizes.append([letterbox.image_size for letterbox in prepared.letterboxes])
            return original(prepared)

        patch.setattr(adapter, "encode_prepared", counted)


def test_the_tower_runs_once_per_image_and_once_per_batch_of_crops(
    adapter: ModelAdapter, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
):
    tower = _Counted(adapter, monkeypatch)
    asked = [images[index] for index in (0, 1, 0, 2, 1, 0)]
    pipeline = random_pipeline(adapter)
    answers = pipeline.answer(asked, QUESTIONS, max_new_tokens=2, batch_size=4)
    whole = [size for call in tower.sizes for size in call if size in SIZES[:3]]
    assert sorted(whole) == sorted(SIZES[:3])
    num_crops = sum(len(answer.boxes) for answer in answers)
    assert sum(len(call) for call in tower.sizes) == 3 + num_crops
    # Two batches: the third image comes only with the second, crops once for each.
    assert len(tower.sizes) <= 4
    alone = [
        pipeline.answer([i], [q], max_new_tokens=2)[0]
        for i, q in zip(asked, QUESTIONS, strict=True)
    ]
    assert same(answers, alone)


def test_streamed_pieces_add_up_to_the_answer(adapter: ModelAdapter, images: list[Image.Image]):
    pipeline = random_pipeline(adapter)
    asked = [images[0], *images[1:5], images[0]]
    expected = pipeline.answer(asked, QUESTIONS, max_new_tokens=MAX_NEW_TOKENS)
    pieces = list(pipeline.stream(asked, QUESTIONS, max_new_tokens=MAX_NEW_TOKENS, batch_size=4))
    assert len(pieces) > 2 * len(QUESTIONS)
    assert same(_put_together(pieces), expected)


def test_streaming_does_not_time_whoever_takes_the_pieces(
    adapter: ModelAdapter, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
):
    """A slow reader's waiting was counted as decoding."""
    now = [0.0]  # only the reader takes time
    for module in ("sdrpn_core.clock", "sdrpn_core.zoom.answers"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(perf_counter=lambda: now[0]))
    pieces = []
    for piece in random_pipeline(adapter).stream(images, QUESTIONS, max_new_tokens=4):
        pieces.append(piece)
        now[0] += 1000.0
    assert len(pieces) > len(QUESTIONS)
    for answer in _put_together(pieces):
        assert set(answer.seconds.values()) == {0.0}


def _put_together(pieces: Sequence[TextPiece]) -> list[ZoomAnswer]:
    answers: dict[int, ZoomAnswer] = {}
    texts: dict[int, str] = {}
    for piece in pieces:
        assert piece.index not in answers, "a piece after the last"
        texts[piece.index] = texts.get(piece.index, "") + piece.text
        if piece.answer is not None:
            assert piece.answer.text == texts[piece.index]
            answers[piece.index] = piece.answer
    return [answers[index] for index in range(len(QUESTIONS))]


def test_async_calls_run_side_by_side(adapter: ModelAdapter, images: list[Image.Image]):
    pipeline = random_pipeline(adapter)
    expected = pipeline.answer(images, QUESTIONS, max_new_tokens=4)

    async def both() -> tuple[list[ZoomAnswer], list[TextPiece]]:
        async def pieces() -> list[TextPiece]:
            return [p async for p in pipeline.astream(images, QUESTIONS, max_new_tokens=4)]

        return await asyncio.gather(pipeline.aanswer(images, QUESTIONS, max_new_tokens=4), pieces())

    answers, pieces = asyncio.run(both())
    assert same(answers, expected)
    assert same(_put_together(pieces), expected)


def test_a_cancelled_call_generates_no_further_token(
    adapter: ModelAdapter, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
):
    """The thread went on to the last token of the last question, for nobody."""
    steps = _CountedSteps(adapter, monkeypatch, num_free=3)

    async def cancelled() -> None:
        call = random_pipeline(adapter).aanswer(images, QUESTIONS, batch_size=2, max_new_tokens=8)
        task = asyncio.create_task(call)
        await asyncio.to_thread(steps.is_reached.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        steps.may_go_on.set()

    asyncio.run(cancelled())  # which waits for the threads that it has started
    assert steps.count == 3


class _CountedSteps:
    """Tokens that the model is asked for, held up at one of them."""

    def __init__(
        self, adapter: ModelAdapter, monkeypatch: pytest.MonkeyPatch, num_free: int
    ) -> None:
        self.count = 0
        self.is_reached, self.may_go_on = Event(), Event()
        self._num_free = num_free
        self._logits = adapter.decoder.next_token_logits
        monkeypatch.setattr(adapter.decoder, "next_token_logits", self)

    def __call__(self, hidden: Tensor) -> Tensor:
        self.count += 1
        if self.count == self._num_free:
            self.is_reached.set()
            assert self.may_go_on.wait(60)
        return self._logits(hidden)


def test_two_pipelines_on_one_model_in_two_threads(
    adapter: ModelAdapter, images: list[Image.Image]
):
    """Each thread gets, every time, what its own RPN gives when nothing else runs."""
    pipelines = [random_pipeline(adapter, seed=seed) for seed in (1, 2)]
    expected = [p.answer(images, QUESTIONS, max_new_tokens=4) for p in pipelines]
    assert not np.array_equal(expected[0][0].roi_map, expected[1][0].roi_map)
    before = _state(adapter.model)

    def work(pipeline: ZoomPipeline) -> list[list[ZoomAnswer]]:
        return [pipeline.answer(images, QUESTIONS, max_new_tokens=4) for _ in range(3)]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(work, pipelines))
    assert _state(adapter.model) == before
    for runs, own in zip(found, expected, strict=True):
        for run in runs:
            assert same(run, own)
            for answer, quiet in zip(run, own, strict=True):
                np.testing.assert_array_equal(answer.roi_map, quiet.roi_map)


def _state(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Of every module: its attributes, how many hooks it has, and its tensors' bytes."""
    return {
        name: (
            sorted(vars(module)),
            [len(hooks) for key, hooks in sorted(vars(module).items()) if key.endswith("_hooks")],
            [
                tensor.detach().numpy().tobytes()
                for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
            ],
        )
        for name, module in model.named_modules()
    }


def test_crops_within_a_token_budget(adapter: ModelAdapter, images: list[Image.Image]):
    (whole,) = encode_crops(adapter, images[:1])
    (small,) = encode_crops(adapter, images[:1], 12)
    assert (whole.grid, small.grid) == ((5, 5), (3, 3))
    assert small.tokens.shape == (9, whole.tokens.shape[1])
    (generous,) = encode_crops(adapter, images[:1], 1000)
    np.testing.assert_array_equal(generous.tokens, whole.tokens)
    pipeline = random_pipeline(adapter)
    cheap = ZoomPipeline(
        adapter,
        pipeline.rpn,
        threshold=pipeline.threshold,
        regions=pipeline.regions.with_changes(crop_tokens=9),
    )
    check_batched_equals_alone(cheap, images, QUESTIONS)
    with pytest.raises(ModelError, match="at least 1"):
        encode_crops(adapter, images[:1], 0)


def test_each_crop_gets_the_mask_of_its_own_region(
    adapter: ModelAdapter, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
):
    """And each answer the number of its own crops' tokens."""
    pipeline = random_pipeline(adapter, mask_threshold_ratio=0.5, min_box_side=3)
    read: list[list[ImageFeatures]] = []

    def spy(adapter: ModelAdapter, first: FirstStage, crops: Any, **options: Any) -> Decoding:
        read.extend(crops)
        return second_stage_prefill(adapter, first, crops, **options)

    monkeypatch.setattr("sdrpn_core.pipeline.second_stage_prefill", spy)
    answers = pipeline.answer(images, QUESTIONS, max_new_tokens=1)
    assert max(len(answer.boxes) for answer in answers) >= 2
    differing = 0
    for image, answer, crops in zip(images, answers, read, strict=True):
        for region, crop in zip(answer.regions, crops, strict=True):
            (whole,) = encode_crops(adapter, [region.box.crop(image)])
            wanted = shown_cells(whole.letterbox, whole.grid, region, image.size)
            np.testing.assert_equal(crop.shown, whole.showing(wanted).shown)
        assert answer.num_crop_tokens == sum(crop.num_tokens for crop in crops)
        differing += len({crop.num_tokens for crop in crops}) > 1
    assert differing, "regions of one image that are all alike would be equal in any order"
    assert len({answer.num_crop_tokens for answer in answers}) >= 3


def test_withdrawing_the_image_changes_answers_with_crops_only(
    adapter: ModelAdapter, images: list[Image.Image]
):
    pipeline = random_pipeline(adapter, max_box_area_ratio=0.04)
    withdrawn = ZoomPipeline(
        adapter,
        pipeline.rpn,
        threshold=pipeline.threshold,
        regions=pipeline.regions.with_changes(withdraw_image=True),
    )
    check_batched_equals_alone(withdrawn, images, QUESTIONS)
    pairs = list(
        zip(pipeline.answer(images, QUESTIONS), withdrawn.answer(images, QUESTIONS), strict=True)
    )
    assert {one.used_crop for one, _ in pairs} == {True, False}
    assert all(one.boxes == two.boxes for one, two in pairs)
    assert all(one.text == two.text for one, two in pairs if not one.used_crop)
    assert any(one.text != two.text for one, two in pairs)


def test_an_image_that_the_model_saw_whole_is_not_zoomed_into(adapter: ModelAdapter):
    """The tiny model sees 40 x 40 pixels."""
    pipeline = random_pipeline(adapter, max_seen_ratio=1.0)
    small, large = random_images([(40, 40), (41, 41)])
    seen, zoomed = pipeline.answer([small, large], ["it", "it"], max_new_tokens=2)
    assert seen.decision is ZoomDecision.IMAGE_FULLY_SEEN
    assert zoomed.decision is not ZoomDecision.IMAGE_FULLY_SEEN


class _Decoded(Sequence[Image.Image]):
    """Images that are decoded anew at each access, as data sets of the hub do it."""

    def __init__(self, images: Sequence[Image.Image]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
        return self.images[index].copy()


def test_images_that_are_decoded_on_access(adapter: ModelAdapter, images: list[Image.Image]):
    """They were told apart by the addresses of copies that were gone, or taken by another."""
    pipeline = random_pipeline(adapter)
    expected = pipeline.answer(images, QUESTIONS, max_new_tokens=4)
    lazy = _Decoded(images)
    assert same(pipeline.answer(lazy, QUESTIONS, max_new_tokens=4, batch_size=2), expected)
    pieces = pipeline.stream(lazy, QUESTIONS, max_new_tokens=4, batch_size=2)
    assert same(_put_together(list(pieces)), expected)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_batchs_cache_is_gone_before_the_next_one_is_made(
    adapter: ModelAdapter,
    images: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    is_streamed: bool,
):
    """Two of them were held, of which the device may hold one."""
    caches: list[weakref.ref[object]] = []
    num_alive = []

    def watched(*args: Any, **kwargs: Any) -> FirstStage:
        gc.collect()
        num_alive.append(sum(cache() is not None for cache in caches))
        first = first_stage(*args, **kwargs)
        caches.append(weakref.ref(first.prefix.cache))
        caches.append(weakref.ref(first.question.cache))
        return first

    def started(*args: Any, **kwargs: Any) -> Decoding:
        start = second_stage_prefill(*args, **kwargs)
        caches.append(weakref.ref(start.cache))
        return start

    monkeypatch.setattr("sdrpn_core.pipeline.first_stage", watched)
    monkeypatch.setattr("sdrpn_core.pipeline.second_stage_prefill", started)
    pipeline = random_pipeline(adapter)
    call = pipeline.stream if is_streamed else pipeline.answer
    list(call(images, QUESTIONS, max_new_tokens=3, batch_size=2))
    assert num_alive == [0, 0, 0]


def test_a_batch_keeps_the_settings_that_it_began_with(
    adapter: ModelAdapter, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
):
    """Boxes of the old settings were cut and read by what another thread had set meanwhile."""
    pipeline = random_pipeline(adapter)
    expected = pipeline.answer(images, QUESTIONS, max_new_tokens=MAX_NEW_TOKENS)

    def meanwhile(*arguments: Any, **named: Any) -> FirstStage:
        found = first_stage(*arguments, **named)
        pipeline.threshold = 1.0
        pipeline.regions = EVERY_REGION.with_changes(crop_tokens=4, withdraw_image=True)
        return found

    monkeypatch.setattr("sdrpn_core.pipeline.first_stage", meanwhile)
    assert same(pipeline.answer(images, QUESTIONS, max_new_tokens=MAX_NEW_TOKENS), expected)
    assert not same(pipeline.answer(images, QUESTIONS, max_new_tokens=MAX_NEW_TOKENS), expected)


def test_nothing_to_answer(adapter: ModelAdapter):
    assert random_pipeline(adapter).answer([], []) == []
