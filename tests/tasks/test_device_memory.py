"""A batch that is too large for the device: one line that says what to change, and nothing lost."""

import weakref
from collections.abc import Sequence

import pytest
import torch

from data_contracts.runtime import RuntimeConfig
from tasks.artifacts.device_memory import (
    DeviceMemoryFull,
    batch_size_of,
    device_memory_explained,
    smaller_if_full,
)
from tasks.artifacts.stage import FileShard, FrameShard, StageRun, run_stage
from tasks.artifacts.store import ArtifactStore
from tests.artifacts import files_recipe, source_frame, source_recipe


def test_a_batch_that_does_not_fit_names_the_setting_and_keeps_what_is_made(
    memory_store: ArtifactStore,
):
    """It was a traceback of torch."""
    run = StageRun(memory_store, RuntimeConfig(device="cuda:1", batch_size=32))
    recipe = files_recipe(num_shards=2)

    def make(index: int) -> FileShard:
        if index == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return FileShard("first", b"made")

    told = "'cuda:1' does not hold a batch of 32: run again with a smaller one"
    with pytest.raises(DeviceMemoryFull, match=told):
        run_stage(run, recipe, make)
    assert memory_store.missing(recipe) == [1]


def test_the_memory_of_a_cpu_is_explained_too_and_one_question_has_no_smaller_batch():
    """It was a traceback of torch, and the advice to go below 1."""
    told = "'cpu' does not hold even a batch of 1: take a device with more memory"
    runtime = RuntimeConfig(device="cpu", batch_size=1)
    with pytest.raises(DeviceMemoryFull, match=told), device_memory_explained(runtime):
        torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_libraries_of_torch_have_no_class_for_a_full_memory(error: RuntimeError):
    """Theirs was a traceback, and was not tried again without idle buffers."""
    with pytest.raises(DeviceMemoryFull), device_memory_explained(RuntimeConfig()):
        raise error


def test_a_batch_that_does_not_fit_is_done_in_smaller_ones(caplog: pytest.LogCaptureFixture):
    sizes: list[int] = []

    def work(numbers: list[int]) -> list[int]:
        return smaller_if_full(
            "cuda:1", len(numbers), lambda: held(numbers), lambda size: in_parts(numbers, size)
        )

    def held(numbers: list[int]) -> list[int]:
        sizes.append(len(numbers))
        if len(numbers) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return [-number for number in numbers]

    def in_parts(numbers: list[int], size: int) -> list[int]:
        starts = range(0, len(numbers), size)
        return [found for start in starts for found in work(numbers[start : start + size])]

    assert work(list(range(7))) == [-number for number in range(7)]
    assert sizes == [7, 4, 2, 2, 3, 2, 1]
    assert "'cuda:1' does not hold a batch of 7: it goes on with 4 at a time" in caplog.text


def test_one_unit_that_takes_much_memory_leaves_other_shards_their_batches():
    """Up to 16 fit, but for a unit that fits alone: all shards that came after went one by one."""
    recipe = files_recipe(num_shards=3)
    sizes: list[int] = []

    def held(units: Sequence[int]) -> list[int]:
        sizes.append(len(units))
        if sum(units) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return [-unit for unit in units]

    def shard(units: list[int]) -> dict[str, tuple[float, ...]]:
        sizes.clear()
        batches = batch_size_of(recipe.ref, 16)
        assert batches.in_batches("cuda", units, held) == [-unit for unit in units]
        return batches.measured

    assert shard([*[1] * 15, 16]) == {"batch_size": (8,)}
    assert sizes == [16, 8, 8, 4, 4, 2, 2, 1, 1]
    assert shard([1] * 16) == {"batch_size": (8,)}
    assert sizes == [8, 8]
    # Where memory has held all before that unit, the next shard begins with as many.
    recipe = files_recipe(num_shards=4)
    assert shard([*[1] * 31, 16]) == shard([1] * 32) == {}
    assert sizes == [16, 16]


def test_whoever_gives_the_batch_size_that_fits_is_not_told_it_again(
    memory_store: ArtifactStore, caplog: pytest.LogCaptureFixture
):
    """Receipts of a run that was stopped remember larger ones."""
    recipe, told = source_recipe(2), "the device's memory held batches of 8 at most: --batch-size 8"

    def make(index: int) -> FrameShard:
        return FrameShard(source_frame(index), measurements={"batch_size": (8,)})

    for batch_size, is_told in ((32, True), (8, False)):
        caplog.clear()
        run = StageRun(memory_store, RuntimeConfig(batch_size=batch_size), force=True)
        run_stage(run, recipe, make)
        assert (told in caplog.text) == is_told


def test_a_smaller_batch_is_tried_when_the_memory_of_the_larger_is_free():
    """An error that is being handled keeps what its frames hold."""
    alive: list[weakref.ref[torch.Tensor]] = []

    def whole() -> int:
        tensor = torch.zeros(1)
        alive.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def smaller(batch_size: int) -> int:
        assert alive[0]() is None
        return batch_size

    assert smaller_if_full("cuda", 8, whole, smaller) == 4


def test_not_even_one_fits():
    sizes: list[int] = []

    def work(batch_size: int) -> None:
        sizes.append(batch_size)
        smaller_if_full("cuda", batch_size, full, work)

    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(DeviceMemoryFull, match=r"'cuda' does not hold even a batch of 1"):
        work(5)
    assert sizes == [5, 3, 2, 1]


def test_other_errors_of_torch_are_left_as_they_are(memory_store: ArtifactStore):
    def make(index: int) -> FileShard:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        run_stage(StageRun(memory_store, RuntimeConfig()), files_recipe(num_shards=1), make)
