"""Checkpoints of other code: take an RPN out of one, or write one with an RPN in it."""

from dataclasses import dataclass
from pathlib import Path

from data_contracts.label_settings import RegionSettings
from data_contracts.settings_files import ConfigError
from sdrpn_core.interop import naming
from sdrpn_core.interop.merged_checkpoint import merge
from sdrpn_core.interop.published_checkpoint import Overrides, read_published_rpn
from sdrpn_core.models.hub import explained, quiet_transformers
from sdrpn_core.models.loading import model_source
from sdrpn_core.models.profiles import load_profile, packaged_profiles
from sdrpn_core.models.stock_model import load_stock_model
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from tasks.artifacts.store import ArtifactStore
from tasks.rpn_files import find_checkpoint, save_checkpoint
from tasks.storage.addresses import kept_address
from tasks.storage.storage import Storage


@dataclass(frozen=True)
class ImportedRpn:
    """What an import found."""

    profile: str
    model_id: str
    branch_layer: int
    depth: int
    source: str
    """How the branch layer was found."""
    threshold: float
    num_parameters: int


def import_checkpoint(
    folder: Path,
    out: Path,
    *,
    profile: str | None = None,
    branch_layer: int | None = None,
    threshold: float | None = None,
    regions: str | None = None,
) -> ImportedRpn:
    """Write the RPN of a full-model checkpoint as an RPN checkpoint of ours.

    Args:
        folder: full-model checkpoint.
        out: folder to write; new or empty.
        profile: packaged name or file; None takes the packaged one that fits.
        branch_layer: B, where the checkpoint does not tell.
        threshold: region threshold; None takes one of the authors'.
        regions: preset of region settings; None takes the authors'.

    Raises:
        ConfigError: for an unknown profile or preset, or if ``out`` is taken.
        ForeignCheckpointError: if the folder holds no RPN that fits.
    """
    _require_free(out)
    overrides = Overrides(
        profile=None if profile is None else load_profile(profile),
        branch_layer=branch_layer,
        threshold=threshold,
        regions=None if regions is None else _preset(regions),
    )
    rpn = read_published_rpn(
        folder, [load_profile(name) for name in packaged_profiles()], overrides
    )
    save_checkpoint(rpn, out)
    return _describe(rpn)


def export_checkpoint(
    store: ArtifactStore, rpn: str | None, model: str | None, out: Path, *, max_shard_bytes: int
) -> list[str]:
    """Write a model with an RPN as the authors would; returns the names of its files.

    Args:
        store: where RPNs are named ``train-rpn/<id>``.
        rpn: folder or artifact; None takes the store's newest.
        model: hub id or directory; None takes what the RPN was trained on.
        out: folder to write; new or empty.
        max_shard_bytes: most bytes of tensors in one file.

    Raises:
        ConfigError: if ``out`` is taken or there is no such RPN.
        ModelError: if the model cannot be loaded.
        MergeError: if the two do not fit each other.
    """
    _require_free(out)
    kept_address(str(out))  # the tokenizer's library writes nowhere else
    checkpoint = find_checkpoint(store, rpn)
    profile = checkpoint.config.profile
    source = model_source(model or profile.model_id)
    revision = None if model else profile.revision
    with quiet_transformers(), explained(source, revision):
        stock = load_stock_model(source, revision)
    merged = merge(stock.model, checkpoint)
    storage = Storage(str(out))
    names = []
    for name, data in merged.files(max_shard_bytes):
        storage.put(name, data)
        names.append(name)
    with quiet_transformers():
        for part in (stock.tokenizer, stock.image_processor):
            part.save_pretrained(out)
    return names


def _require_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: exists already; give a new or empty folder")


def _preset(name: str) -> RegionSettings:
    try:
        return RegionSettings.preset(name)
    except ValueError as error:
        raise ConfigError(f"--regions: {error}") from None


def _describe(rpn: RpnCheckpoint) -> ImportedRpn:
    config = rpn.config
    return ImportedRpn(
        profile=config.profile.name,
        model_id=config.profile.model_id,
        branch_layer=config.shape.branch_layer,
        depth=config.shape.depth,
        source=config.imported.branch_layer_source if config.imported else naming.RPN_CONFIG,
        threshold=config.threshold,
        num_parameters=sum(tensor.numel() for tensor in rpn.state.values()),
    )
