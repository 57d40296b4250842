"""Files of the Hugging Face hub: pinned to a commit, with the digest and licence it publishes."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from huggingface_hub import HfApi, constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._headers import build_hf_headers

from data_contracts.errors import one_line
from data_contracts.runtime import DownloadSettings
from sdrpn_core.transport_errors import is_client_error, is_transport_error, may_pass, retry_after
from tasks.fetching.http_remote import HttpRemote
from tasks.fetching.remote import Hiccup, RemoteInfo, Unavailable

_URI = re.compile(
    r"hf://(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?/(?P<path>.+)"
)
_ANY_DATASET = "liuhaotian/LLaVA-Instruct-150K"
_KINDS = {"datasets": "dataset", "spaces": "space", None: "model"}


def hub_remote(uri: str, settings: DownloadSettings) -> HttpRemote:
    """The address behind ``hf://datasets/owner/name[@revision]/path``.

    Raises:
        Unavailable: if there is no such file, or it may not be read.
        Hiccup: if the hub does not answer.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise Unavailable("is not of the form hf://datasets/owner/name[@revision]/path; mend it")
    repo, path, kind = match["repo"], match["path"], _KINDS[match["kind"]]
    revision = unquote(match["revision"]) if match["revision"] else None
    api = HfApi()
    with _explained():
        info = api.repo_info(repo, repo_type=kind, revision=revision, timeout=settings.read_timeout)
        found = api.get_paths_info(repo, [path], repo_type=kind, revision=info.sha)
    if not found or not isinstance(found[0], RepoFile):
        raise Unavailable(f"the repository has no file {path!r}; check the path")
    return HttpRemote(
        hf_hub_url(repo, path, repo_type=kind, revision=info.sha, endpoint=api.endpoint),
        settings,
        headers=dict(build_hf_headers()),
        sha256=found[0].lfs.sha256 if found[0].lfs else None,
        licence=_licence(list(getattr(info, "tags", None) or ())),
    )


@dataclass(frozen=True)
class HubModel:
    """A model's repository at one commit."""

    repo: str
    commit: str | None
    licence: str | None
    files: Mapping[str, RemoteInfo]
    """By path."""


def ask_model(repo: str, revision: str | None, settings: DownloadSettings) -> HubModel:
    """What the hub says of a model's files, in one question.

    Raises:
        Unavailable: if there is no such model, or it may not be read.
        Hiccup: if the hub does not answer.
    """
    with _explained():
        info = HfApi().model_info(
            repo, revision=revision, files_metadata=True, timeout=settings.read_timeout
        )
    files = {
        file.rfilename: RemoteInfo(
            file.size, file.blob_id or "", True, file.lfs.sha256 if file.lfs else None
        )
        for file in info.siblings or ()
    }
    return HubModel(repo, info.sha, _licence(list(info.tags or ())), files)


def hub_cache() -> Path:
    """Where the hub's client keeps what it fetches."""
    return Path(constants.HF_HUB_CACHE).expanduser().absolute()


def is_cached(model: HubModel, path: str) -> bool:
    """Whether the hub's client has a model's file."""
    return isinstance(try_to_load_from_cache(model.repo, path, revision=model.commit), str)


def is_offline() -> bool:
    """Whether the environment says that the hub is not to be asked."""
    return bool(constants.HF_HUB_OFFLINE)


def ask_hub(settings: DownloadSettings) -> tuple[str, str | None]:
    """Whether the hub answers: its address, and what is wrong if something is."""
    api = HfApi()
    try:
        with _explained():
            api.repo_info(_ANY_DATASET, repo_type="dataset", timeout=settings.connect_timeout)
    except (Hiccup, Unavailable) as error:
        return api.endpoint, str(error)
    return api.endpoint, None


@contextmanager
def _explained() -> Iterator[None]:
    """What the hub's client raises, as what to do about it."""
    try:
        yield
    except HFValidationError as error:
        reason = one_line(error)
        raise Unavailable(f"is no address on the hub ({reason}); mend it") from error
    except (HfHubHTTPError, OSError) as error:
        raise _meaning(error) from error
    except Exception as error:
        if is_transport_error(error):
            raise Hiccup(f"the hub does not answer ({error})") from error
        if is_client_error(error):
            raise Unavailable(f"the hub cannot be asked ({error}); check HF_ENDPOINT") from error
        raise


def _meaning(error: Exception) -> Exception:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403, 404):
        return Unavailable(
            "no such repository or revision on the hub, or it is gated: accept its terms, then "
            "`hf auth login`"
        )
    if status is not None and status >= 400 and not may_pass(status):
        return Unavailable(f"the hub refuses it (HTTP {status}); check access with `sdrpn doctor`")
    headers = getattr(response, "headers", {})
    return Hiccup(f"the hub does not answer ({error})", retry_after(headers))


def _licence(tags: list[str]) -> str | None:
    named = [tag.removeprefix("license:") for tag in tags if tag.startswith("license:")]
    return ", ".join(named) or None
