"""The frozen model of a run: which one it is, and one copy of it per process."""

import hashlib
import json
import logging
from functools import lru_cache
from multiprocessing import current_process
from pathlib import Path
from typing import Any

from data_contracts.configs import ModelConfig, PipelineConfig
from data_contracts.profiles import ModelProfile
from data_contracts.runtime import RuntimeConfig
from data_contracts.settings_files import ConfigError
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.devices import (
    DeviceMap,
    check_device_map,
    check_device_map_names,
    named_device,
    resolve_device,
)
from sdrpn_core.models.families import FAMILIES, check_family
from sdrpn_core.models.loading import (
    known_config,
    load_adapter,
    model_source,
    pinned_profile,
    require_commit,
)
from sdrpn_core.models.profiles import load_profile
from sdrpn_core.rpn.copied_layers import check_copyable
from tasks.loaded_model import loaded
from tasks.storage.addresses import absolute_path
from tasks.storage.storage import Storage

log = logging.getLogger(__name__)

_SUFFIXES = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja")
_WEIGHTS = (".safetensors", ".bin")
_LARGE_BYTES = 1 << 28


def profile_of(model: ModelConfig) -> ModelProfile:
    """The profile that a run names, at the revision that it names if it does.

    Ids are made of it, and an RPN keeps it, so it means the same model in every working directory.
    """
    given = model.profile
    profile = found_anywhere(given if isinstance(given, ModelProfile) else load_profile(given))
    if model.revision is None:
        return profile
    return profile.model_copy(update={"revision": model.revision})


def found_anywhere(profile: ModelProfile) -> ModelProfile:
    """The profile, with an absolute path if its model is a folder beside the working directory."""
    folder = Path(model_source(profile.model_id))  # the built-in one lies in the package
    if folder.is_absolute() or not folder.is_dir():
        return profile
    return profile.model_copy(update={"model_id": str(absolute_path(profile.model_id))})


def pinned(model: ModelConfig) -> ModelConfig:
    """The model with the commit that its revision stands for now; a local one stays as it is.

    Whoever starts several stages or processes pins first, so that all of them mean one model even
    if the hub's changes meanwhile.

    Raises:
        ModelError: if the hub and its cache do not have the model.
    """
    revision = pinned_profile(profile_of(model)).revision
    return model.model_copy(update={"revision": revision})


def model_identity(model: ModelConfig) -> dict[str, Any]:
    """What answers and attention depend on: weights, prompt, heads, precision.

    A hub model is identified by its commit: were it the name of a branch, or none, labels of other
    weights would be reused once the branch moves.
    """
    profile = profile_of(pinned(model))
    directory = Path(model_source(profile.model_id))
    is_local = directory.is_dir()
    return {
        "family": profile.family,
        "model": _directory_digest(str(directory.absolute())) if is_local else profile.model_id,
        "revision": profile.revision,
        "prompt": profile.prompt,
        **profile.model_dump(mode="json", include={"images", "extraction_instructions", "heads"}),
        "dtype": model.dtype,
    }


def placement(runtime: RuntimeConfig) -> tuple[object, ...]:
    """What decides where a model runs and with how many threads."""
    return runtime.device, json.dumps(runtime.device_map, sort_keys=True), runtime.num_threads


def adapter_for(model: ModelConfig, runtime: RuntimeConfig) -> ModelAdapter:
    """The loaded model; later calls in the same process load nothing while weights stay the same,
    even if the profile has changed: it may have been calibrated meanwhile."""
    profile = profile_of(model)
    weights = (profile.family, profile.model_id, profile.revision, model.dtype)
    key = (*weights, *placement(runtime))
    return loaded.adapter(key, profile, lambda: _load(profile, model.dtype, runtime))


def adapter_for_labels(model: ModelConfig, runtime: RuntimeConfig) -> ModelAdapter:
    """The loaded model, if an RPN can be copied from its layers: nothing could be trained on its
    labels else.

    Raises:
        ModelError: if not; says why.
    """
    adapter = adapter_for(model, runtime)
    check_copyable(adapter, adapter.profile.rpn)
    return adapter


def require_usable_settings(config: PipelineConfig) -> None:
    """Refuse a profile that is not its model's, and settings that the model cannot follow, without
    loading it; a model that the hub has not given yet is looked at when it is pinned.

    Raises:
        ModelError: saying what would do.
    """
    profile = profile_of(config.model)
    check_family(profile)
    known_config(profile)
    _warn_of_idle_threshold(config, profile)
    family = FAMILIES[profile.family]
    family.check_regions(config.region_settings(profile))
    if config.evaluation is not None:
        family.check_crop_tokens(config.evaluation.crop_tokens)
        family.check_methods(config.evaluation.methods)


def _warn_of_idle_threshold(config: PipelineConfig, profile: ModelProfile) -> None:
    """Say that a run's own sink threshold changes nothing, where it does not."""
    own = None if config.labels is None else config.labels.model_dump().get("sink_threshold")
    has_rule = any(selection.sink is not None for selection in profile.heads.values())
    if own is not None and profile.is_calibrated and not has_rule:
        log.warning(
            "labels.sink_threshold (%g) is without effect: profile %r names no sink rule",
            own,
            profile.name,
        )


def require_model(model: ModelConfig) -> None:
    """Check that a model that is named by its commit is to be had; others are asked for as they are
    pinned.

    Raises:
        ModelError: if it is not, or is one that the profile is not for.
    """
    require_commit(profile_of(model))


def require_device(device: str) -> None:
    """Check that this machine has a device; a GPU is not woken: workers may want all its memory.

    Raises:
        ModelError: if it does not.
    """
    import torch

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if device not in gpus and not (device == "cuda" and gpus):
        resolve_device(device)


def require_device_map(device_map: DeviceMap) -> None:
    """Check that a model can be spread over devices of this machine as a map says.

    Raises:
        ModelError: if it cannot.
    """
    check_device_map(device_map)


def require_device_names(runtime: RuntimeConfig) -> None:
    """Check that some machine may have the devices that settings name.

    Raises:
        UnknownChoice: if none has.
    """
    if runtime.device_map is not None:
        check_device_map_names(runtime.device_map)
    else:
        named_device(runtime.device)


def _load(profile: ModelProfile, dtype: str, runtime: RuntimeConfig) -> ModelAdapter:
    import torch

    if runtime.num_threads is not None:
        torch.set_num_threads(runtime.num_threads)
    device = runtime.device
    if runtime.device_map is None:
        # Child processes are numbered from 1 by the process that starts them.
        number = (0, *getattr(current_process(), "_identity", ()))[-1]
        device = device_of_worker(device, number, torch.cuda.device_count())
    return load_adapter(profile, device=device, dtype=dtype, device_map=runtime.device_map)


def device_of_worker(device: str, number: int, num_gpus: int) -> str:
    """Spread worker processes over the GPUs; a device that is named with its index stays."""
    if device in ("auto", "cuda") and num_gpus > 1:
        return f"cuda:{number % num_gpus}"
    return device


@lru_cache(maxsize=8)
def _directory_digest(directory: str) -> str:
    """Digest of a model directory: bytes of ordinary files, size and time of very large ones.

    Hashing 15 GB of weights at every start would take longer than most stages.
    """
    path = Path(directory)
    storage = Storage(str(path))
    # Links are followed: a snapshot in the hub's cache consists of them.
    names = sorted(
        str(file.relative_to(path)) for file in path.rglob("*") if file.name.endswith(_SUFFIXES)
    )
    if not any(name.endswith(_WEIGHTS) for name in names):
        raise ConfigError(
            f"{directory}: no weights ({' or '.join(_WEIGHTS)}); give the folder of a whole model"
        )
    total = hashlib.sha256()
    for name, file in sorted(storage.describe(names).items()):
        total.update(f"/{name}\0{file.num_bytes}\0".encode())
        is_large = file.num_bytes > _LARGE_BYTES
        total.update(file.version.encode() if is_large else storage.read(name))
    return total.hexdigest()
