"""Which failures may go away by themselves."""

_PERMANENT = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
)
_DRIVERS = ("aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "huggingface_hub", "requests")
_NO_CREDENTIALS = ("Credential", "Profile", "ParamValidation")


def is_transient(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a hiccup of the network or of a storage service."""
    while error is not None:
        if isinstance(error, OSError) and not isinstance(error, _PERMANENT):
            return True
        is_driver = type(error).__module__.partition(".")[0] in _DRIVERS
        if is_driver and not any(word in type(error).__name__ for word in _NO_CREDENTIALS):
            return True
        error = error.__cause__
    return False
