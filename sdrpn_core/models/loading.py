"""The model that a profile names: where it lies, at which commit, and its adapter once loaded."""

import logging
import re
from pathlib import Path

from transformers import PreTrainedConfig

from data_contracts.profiles import ModelProfile
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.decoder_check import check_decoder, unknown_layers_explained
from sdrpn_core.models.devices import DeviceMap, check_device_map, resolve_device, resolve_dtype
from sdrpn_core.models.families import FAMILIES, check_family, check_model
from sdrpn_core.models.generation_settings import left_out_settings
from sdrpn_core.models.hub import explained, local_folder, quiet_transformers
from sdrpn_core.models.stock_model import load_stock_model, stock_config
from sdrpn_core.reference.model import reference_model_path

log = logging.getLogger(__name__)

REFERENCE = "reference"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def model_source(model_id: str) -> str:
    """Where a profile's model is loaded from: a hub id, or a directory."""
    return str(reference_model_path()) if model_id == REFERENCE else model_id


def is_commit(revision: str | None) -> bool:
    """Whether a revision names a commit, which no push to the hub moves."""
    return _COMMIT.fullmatch(revision or "") is not None


def load_adapter(
    profile: ModelProfile,
    *,
    device: str = "auto",
    dtype: str = "float32",
    device_map: DeviceMap | None = None,
) -> ModelAdapter:
    """Load a model with its tokenizer and image processor, frozen and ready.

    A model of the hub keeps the commit it was loaded at: the adapter's profile names it, and with
    it every RPN trained beside the model.

    Args:
        profile: what to load; ``model_id`` is a hub id, a directory or ``reference``.
        device: torch device, or ``auto``.
        dtype: one of ``DTYPES``.
        device_map: spreads the model over several devices instead of putting it on ``device``.

    Raises:
        ModelError: if the family, device or dtype is unknown, or the weights cannot be had; says
            what to do.
    """
    check_family(profile)
    if device_map is not None:
        check_device_map(device_map)
    precision = resolve_dtype(dtype)
    target = resolve_device(device) if device_map is None else None
    source = model_source(profile.model_id)
    with quiet_transformers(), explained(source, profile.revision):
        profile = _pinned(profile, source)
        stock = load_stock_model(source, profile.revision, dtype=precision, device_map=device_map)
        model = stock.model if target is None else stock.model.to(target)
    adapter = FAMILIES[profile.family](model, stock.tokenizer, profile, stock.image_processor)
    with unknown_layers_explained(profile.model_id):
        check_decoder(adapter.decoder, profile.model_id)
        log.info(
            "loaded %s at %s: %s",
            profile.model_id,
            profile.revision or source,
            adapter.decoder.kernel,
        )
    if left_out := left_out_settings(model.generation_config):
        log.warning(
            "%s: answers are greedy and leave out its generation settings %s",
            profile.model_id,
            ", ".join(left_out),
        )
    return adapter


def pinned_profile(profile: ModelProfile) -> ModelProfile:
    """The profile with the commit that its revision stands for, without loading the model.

    Raises:
        ModelError: if the model cannot be had or driven, or is of another family.
    """
    source = model_source(profile.model_id)
    if Path(source).is_dir() or is_commit(profile.revision):
        return profile
    with quiet_transformers(), explained(source, profile.revision):
        return _pinned(profile, source)


def require_commit(profile: ModelProfile) -> None:
    """Check that the model of a commit is to be had: pinning takes a commit at its word, as what is
    made with it already needs no hub.

    Raises:
        ModelError: if it cannot be had or driven, or is one that the profile is not for.
    """
    if not is_commit(profile.revision) or known_config(profile) is not None:
        return
    source = model_source(profile.model_id)
    with quiet_transformers(), explained(source, profile.revision):
        _pinned(profile, source)


def known_config(profile: ModelProfile) -> PreTrainedConfig | None:
    """The configuration of a profile's model, without asking the hub; None if it is not here yet.

    Raises:
        ModelError: if it cannot be read, or is of a model that the profile is not for.
    """
    source = model_source(profile.model_id)
    folder = local_folder(source, profile.revision)
    if folder is None or not (folder / "config.json").is_file():
        return None
    with quiet_transformers(), explained(source, profile.revision):
        config = stock_config(str(folder))
    check_model(profile, config, source)
    return config


def _pinned(profile: ModelProfile, source: str) -> ModelProfile:
    """The profile with the commit that its revision stands for; checks the model on the way."""
    config = stock_config(source, profile.revision)
    check_model(profile, config, source)
    folder = local_folder(source, profile.revision)
    if Path(source).is_dir() or folder is None:
        return profile
    if profile.revision is None:
        log.warning(
            "%s is loaded without a pinned revision; to keep these weights, set in profile %s: "
            "revision: %s",
            source,
            profile.name,
            folder.name,
        )
    return profile.model_copy(update={"revision": folder.name})
