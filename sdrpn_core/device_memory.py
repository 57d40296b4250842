"""Telling a full memory from other errors: torch has a class for it, its libraries have not."""

_MESSAGES = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory left.

    By names, so that whoever asks need not load torch.
    """
    is_of_torch = isinstance(error, RuntimeError)
    named = type(error).__name__ == "OutOfMemoryError"
    return is_of_torch and (named or any(message in str(error) for message in _MESSAGES))
