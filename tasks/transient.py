"""Which failures may go away by themselves."""

from tasks.fetching.remote import NoAnswer

_PERMANENT = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
)
_DRIVERS = (
    "aiohttp",
    "aiobotocore",
    "botocore",
    "gcsfs",
    "google",
    "httpx",
    "huggingface_hub",
    "requests",
)
_NO_CREDENTIALS = ("Credential", "Profile", "ParamValidation")
_TRY_AGAIN = (408, 429)


def is_transient(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a hiccup of the network or of a storage service."""
    while error is not None:
        if _is_refusal(error):
            return False
        is_driver = type(error).__module__.partition(".")[0] in _DRIVERS
        if is_driver and not any(word in type(error).__name__ for word in _NO_CREDENTIALS):
            return True
        if isinstance(error, _PERMANENT):
            return False  # a driver's error may be its cause, and is explained by it
        if isinstance(error, OSError | NoAnswer):
            return True
        error = error.__cause__
    return False


def _is_refusal(error: BaseException) -> bool:
    """Whether a server's status says that asking again gives the same answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in _TRY_AGAIN
