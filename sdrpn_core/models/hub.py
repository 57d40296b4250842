"""The Hugging Face hub, as models come from it: the only place of the core that knows it.

Above all why a model cannot be loaded, in one line that says what to do. transformers wraps the
hub's errors in OSError with advice of several lines; what really happened is the type of an error
further down the chain.
"""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from data_contracts.errors import one_line
from sdrpn_core.device_memory import is_out_of_memory
from sdrpn_core.models.errors import ModelError
from sdrpn_core.transport_errors import is_transport_error

_BROKEN_WEIGHTS = (SafetensorError, EOFError)
_BAD_SETTINGS = (StrictDataclassError, LookupError, TypeError, AttributeError, RecursionError)
"""How transformers says that a value in a configuration is missing, unknown, of another type, or
nested without end."""
_EXPECTED = (OSError, ValueError, ImportError, *_BROKEN_WEIGHTS, *_BAD_SETTINGS)
"""What a model that cannot be had raises, beside broken connections."""
_TORN = ("PytorchStreamReader", "unexpected EOF", "Weights only load failed")
"""How torch begins what it says of weights in its own formats that are cut off, or none at all."""
_UNSAFE = "Unsupported global"
_NOT_ON_DISK = "offload_folder"
_NO_TOKENIZER = "instantiate the backend tokenizer"
_OR_DIRECTORY = "or give the path of a local copy instead"


def local_folder(source: str, revision: str | None) -> Path | None:
    """Where a model's files lie: the directory itself, or its commit's folder in the hub's cache.

    Args:
        source: hub id or directory.
        revision: branch, tag or commit; None is ``main``.

    Returns:
        None if nothing of it is there yet. The last part of a cached path is the commit.

    Raises:
        ModelError: if it is no directory, and can be no hub id.
    """
    if Path(source).is_dir():
        return Path(source)
    with explained(source, revision):
        cached = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


@contextmanager
def explained(source: str, revision: str | None) -> Iterator[None]:
    """Turn whatever goes wrong while a model loads into a ``ModelError``.

    Args:
        source: hub id or directory.
        revision: branch, tag or commit that was asked for.

    Raises:
        ModelError: one line with the cause and the remedy.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise ModelError(
                f"model {source!r} does not fit into the device's memory: choose dtype bfloat16, "
                "or spread it over several GPUs with device_map: auto in the runtime settings"
            ) from error
        if not (isinstance(error, _EXPECTED) or is_transport_error(error) or _is_torn(error)):
            raise
        raise ModelError(f"model {source!r} {_reason(error, source, revision)}") from error


class _Noise:
    """What transformers and the hub show while they load: settings of the whole process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._num_loading = 0
        self._hosts = (0, False, False)
        """Verbosity, bars, bars of downloads, as the process had them."""

    def hush(self) -> None:
        """No bars and no advice but a host's bars of downloads, until as many have ended."""
        with self._lock:
            self._num_loading += 1
            if self._num_loading > 1:
                return
            had_bars = transformers_logging.is_progress_bar_enabled()
            had_download_bars = not are_progress_bars_disabled()
            self._hosts = (transformers_logging.get_verbosity(), had_bars, had_download_bars)
            transformers_logging.set_verbosity_error()
            transformers_logging.disable_progress_bar()
            if had_download_bars:
                enable_progress_bars()  # the line above turned these off too

    def end(self) -> None:
        """The last one gives the host its settings back."""
        with self._lock:
            self._num_loading -= 1
            if self._num_loading:
                return
            verbosity, had_bars, had_download_bars = self._hosts
            transformers_logging.set_verbosity(verbosity)
            if had_bars:
                transformers_logging.enable_progress_bar()
            if not had_download_bars:
                disable_progress_bars()


_NOISE = _Noise()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no advice while models load, by however many threads at once.

    Downloads keep their bars, errors still raise.
    """
    _NOISE.hush()
    try:
        yield
    finally:
        _NOISE.end()


def _reason(error: BaseException, source: str, revision: str | None) -> str:
    for cause in _chain(error):
        if found := _hub_reason(cause, source, revision) or _file_reason(cause, source, revision):
            return found
    if isinstance(error, _BAD_SETTINGS):  # not where it is the cause of one that explains itself
        what = f"{type(error).__name__}: {one_line(error)}"
        return f"has settings that transformers cannot use ({what}): mend its JSON files"
    is_missing = isinstance(error, OSError) and error.errno is None and not Path(source).is_dir()
    if is_missing and constants.HF_HUB_OFFLINE:
        return (
            f"is only partly in the cache {constants.HF_HUB_CACHE} ({_first_line(error)}) and "
            f"HF_HUB_OFFLINE is set: run `{_download(source, revision)}` with a network first, "
            f"{_OR_DIRECTORY}"
        )
    return f"cannot be loaded: {_first_line(error)}; check the id, the revision and its files"


def _hub_reason(cause: BaseException, source: str, revision: str | None) -> str | None:
    match cause:
        case GatedRepoError():
            return (
                f"is gated: accept its terms at {constants.ENDPOINT}/{source}, then log in with "
                f"`hf auth login` or set HF_TOKEN, {_OR_DIRECTORY}"
            )
        case RevisionNotFoundError():
            return (
                f"has no revision {revision!r}: set `revision` in the profile to a branch, tag or "
                f"commit that {constants.ENDPOINT}/{source} lists"
            )
        case RepositoryNotFoundError():
            return (
                f"is not on the hub at {constants.ENDPOINT}, or is private: check its name; log in "
                f"with `hf auth login` or set HF_TOKEN if it is private, {_OR_DIRECTORY}"
            )
        case OfflineModeIsEnabled() | LocalEntryNotFoundError() if constants.HF_HUB_OFFLINE:
            return (
                f"is not in the cache {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE is set: run "
                f"`{_download(source, revision)}` with a network first, {_OR_DIRECTORY}"
            )
        case LocalEntryNotFoundError():
            return (
                f"is not in the cache {constants.HF_HUB_CACHE} and the hub at {constants.ENDPOINT} "
                f"cannot be reached: check the network and HF_ENDPOINT, {_OR_DIRECTORY}"
            )
        case EntryNotFoundError():
            return None  # the error around it says which file, and files may be optional
        case HfHubHTTPError():
            return f"cannot be had from the hub ({_first_line(cause)}): try again later"
        case _ if is_transport_error(cause):
            return (
                f"could not be fetched whole ({type(cause).__name__}: {_first_line(cause)}): check "
                "the network and run again; files that are whole are kept"
            )
        case HFValidationError():
            return "is neither a directory nor a hub id (`owner/name`): check its name"
    return None


def _file_reason(cause: BaseException, source: str, revision: str | None) -> str | None:
    match cause:
        case ValueError() if "trust_remote_code" in str(cause):
            return (
                "needs Python code that lies beside its files, which is never run here: name the "
                "version of it that is made for transformers (often the same name with -hf)"
            )
        case ValueError() if _NO_TOKENIZER in str(cause):
            return (
                "has no tokenizer.json, and nothing that one can be made of: "
                f"{_anew(source, revision)}"
            )
        case ValueError() if _NOT_ON_DISK in str(cause):
            return (
                "has weights that transformers lays out anew as it loads them, as it does with "
                "those of experts: device_map cannot leave them on disk; map them to a GPU or the "
                "CPU, or use more GPUs"
            )
        case _ if _UNSAFE in str(cause):
            return (
                "has weights in a pickle that holds more than tensors, which is not loaded: take "
                "the model's safetensors"
            )
        case _ if isinstance(cause, _BROKEN_WEIGHTS) or _is_torn(cause):
            where = _broken_weights(source, revision) or _what_is_broken(cause)
            return f"has corrupted weights ({where}): {_anew(source, revision)}"
        case json.JSONDecodeError():
            return f"has a configuration file that is not JSON ({cause}): {_anew(source, revision)}"
        case OSError(errno=errno.ENOSPC):
            return (
                f"cannot be downloaded, the disk of {constants.HF_HUB_CACHE} is full: free some "
                "space, or set HF_HOME to a folder on a larger disk"
            )
        case PermissionError():
            return f"cannot be read ({cause}): mend the permissions, or set HF_HOME to your own"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, innermost last."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _is_torn(error: BaseException) -> bool:
    return str(error).startswith(_TORN)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


def _download(source: str, revision: str | None) -> str:
    return f"hf download {source}" + (f" --revision {revision}" if revision else "")


def _anew(source: str, revision: str | None) -> str:
    if Path(source).is_dir():
        return "copy the directory anew"
    return f"run `{_download(source, revision)} --force-download`"


def _what_is_broken(error: BaseException) -> str:
    """Without torch's advice to unpickle files unsafely that it does not know."""
    return "no file of weights" if "weights_only" in str(error) else _first_line(error)


def _broken_weights(source: str, revision: str | None) -> str | None:
    """Name of the first weights file whose header does not match its bytes."""
    folder = local_folder(source, revision)
    for file in sorted(folder.glob("*.safetensors")) if folder is not None else []:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            return f"{file.name}: {_first_line(error)}"
    return None
