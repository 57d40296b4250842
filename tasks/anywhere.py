"""A run's settings such that they mean the same in every working directory.

Prefect records them, and a deployment makes a stage of that run again in a folder of its own.
"""

from pathlib import Path
from typing import Any

from data_contracts.configs import PipelineConfig
from data_contracts.profiles import ModelProfile
from data_contracts.runtime import RuntimeConfig
from sdrpn_core.models.profiles import load_profile, packaged_profiles
from tasks.models import found_anywhere
from tasks.storage.addresses import absolute_path, absolute_root, absolute_uri

_ADDRESSES = frozenset({"records", "images", "boxes", "files", "uri", "file", "mirrors"})
"""Keys of sources that hold paths or URIs, or what holds them in turn."""


def config_anywhere(config: PipelineConfig) -> PipelineConfig:
    """The configuration with absolute paths of its profile and of all that its sources name."""
    plain = config.model_dump(mode="json")
    plain["sources"] = _absolute(plain["sources"])
    evaluation = plain["evaluation"]
    if evaluation is not None:
        for key in ("source", "benchmarks"):
            evaluation[key] = _absolute(evaluation[key])
    plain["model"]["profile"] = _profile_anywhere(config.model.profile)
    return PipelineConfig.model_validate(plain)


def _profile_anywhere(given: str | ModelProfile) -> Any:
    """Its name or path; written out if its model is a folder, which its file names as seen from
    the working directory."""
    if isinstance(given, str) and given in packaged_profiles():
        return given
    path = None if isinstance(given, ModelProfile) else str(absolute_path(given))
    if path is not None and not Path(path).is_file():
        return path  # whoever reads it says so
    profile = given if isinstance(given, ModelProfile) else load_profile(given)
    found = found_anywhere(profile)
    is_as_given = found.model_id == profile.model_id
    return path if path is not None and is_as_given else found.model_dump(mode="json")


def runtime_anywhere(runtime: RuntimeConfig) -> RuntimeConfig:
    """The runtime settings with absolute paths of the store and the downloads."""
    downloads = runtime.downloads
    if downloads.folder is not None:
        downloads = downloads.model_copy(update={"folder": str(absolute_path(downloads.folder))})
    store = absolute_root(runtime.store)
    return runtime.model_copy(update={"store": store, "downloads": downloads})


def _absolute(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _absolute(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_absolute(inner, key) for inner in value]
    return absolute_uri(value) if isinstance(value, str) and key in _ADDRESSES else value
