"""Wall-clock time that counts the work of a GPU."""

import time

import torch


def synchronized_seconds(device: torch.device) -> float:
    """Seconds of a monotonic clock, once this thread's work on the device is done."""
    if device.type == "cuda":
        # Not the whole device: that fails while another thread records a graph on it.
        torch.cuda.current_stream(device).synchronize()
    return time.perf_counter()
