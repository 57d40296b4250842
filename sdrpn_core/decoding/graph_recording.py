"""What a CUDA device does, recorded as a graph, and what a broken-off recording leaves behind."""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

_RECORDING = threading.Lock()
"""Recording starts by waiting for the device, which fails while another recording is under way."""
_BROKEN_OFF: list[torch.cuda.CUDAGraph] = []
"""Torch's allocator of pinned memory goes on asking these whether they are being recorded."""


def record(
    graph: torch.cuda.CUDAGraph, run: Callable[[], object], device: torch.device, memory: Any
) -> None:
    """Record what ``run`` starts on the device.

    A recording that fails leaves its own stream current: the context before it puts the former
    back. Other threads may use the device meanwhile, if they do not wait for all of it. Nothing is
    collected as garbage, which might be something that waits for the device when it goes.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with (
        _RECORDING,
        _without_collection(),
        torch.cuda.stream(torch.cuda.current_stream(device)),
        torch.cuda.graph(graph, memory, stream, capture_error_mode="thread_local"),
    ):
        run()


@contextmanager
def _without_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def clear_up(graph: torch.cuda.CUDAGraph, device: torch.device, memory: Any) -> None:
    """End a recording that CUDA broke off: torch goes on as if it were under way still.

    Memory would not be given back to the device, and random numbers not be drawn.
    """
    with suppress(RuntimeError):  # where only the model's code failed, the recording has ended
        torch._C._cuda_endAllocateToPool(device.index, memory)
        torch._C._cuda_releasePool(device.index, memory)
        graph.reset()
        _BROKEN_OFF.append(graph)
    with suppress(RuntimeError):  # a recording that ends well is what the generator waits for
        record(
            torch.cuda.CUDAGraph(),
            lambda: torch.zeros(1, device=device),
            device,
            torch.cuda.graph_pool_handle(),
        )


def give_back_cached_memory() -> None:
    """``empty_cache``, which torch does not stand while something is recorded."""
    with _RECORDING:
        torch.cuda.empty_cache()
