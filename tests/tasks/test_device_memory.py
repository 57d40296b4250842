"""A batch that is too large for the device: one line that says what to change, and nothing lost."""

import pytest
import torch

from data_contracts.runtime import RuntimeConfig
from tasks.artifacts.device_memory import DeviceMemoryFull, device_memory_explained
from tasks.artifacts.stage import FileShard, StageRun, run_stage
from tasks.artifacts.store import ArtifactStore
from tests.artifacts import files_recipe


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


def test_other_errors_of_torch_are_left_as_they_are(memory_store: ArtifactStore):
    def make(index: int) -> FileShard:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        run_stage(StageRun(memory_store, RuntimeConfig()), files_recipe(num_shards=1), make)
