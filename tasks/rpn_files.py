"""Trained RPNs as files: those of a store, and folders of their own."""

from pathlib import Path

from data_contracts.artifact import ArtifactRef
from data_contracts.enums import Stage
from data_contracts.settings_files import ConfigError
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from tasks.artifacts.admin import committed_artifacts
from tasks.artifacts.store import ArtifactStore
from tasks.storage.storage import Storage


def stored_checkpoint(store: ArtifactStore, rpn: ArtifactRef) -> RpnCheckpoint:
    """An RPN of the store."""
    files = {name: store.read_file(rpn, name) for name in store.file_names(rpn)}
    return RpnCheckpoint.from_files(files, str(rpn))


def find_checkpoint(store: ArtifactStore, rpn: str | None) -> RpnCheckpoint:
    """The RPN to use: a directory, ``train-rpn/<id>`` of the store, or the store's newest.

    Raises:
        ConfigError: if there is none.
    """
    if rpn is not None and Path(rpn).is_dir():
        return RpnCheckpoint.load_directory(rpn)
    return stored_checkpoint(store, newest_rpn(store) if rpn is None else _parse(rpn))


def newest_rpn(store: ArtifactStore) -> ArtifactRef:
    """The RPN that was finished last.

    Raises:
        ConfigError: if there is none.
    """
    trained = committed_artifacts(store, Stage.TRAIN_RPN)
    if not trained:
        raise ConfigError(
            f"no trained RPN in store {store.root}: run `sdrpn run` first, or give --rpn or --store"
        )
    return trained[-1].recipe.ref


def save_checkpoint(checkpoint: RpnCheckpoint, folder: str | Path) -> None:
    """Write an RPN's files into a folder or below a URI."""
    storage = Storage(str(folder))
    for name, data in checkpoint.to_files().items():
        storage.put(name, data)


def _parse(rpn: str) -> ArtifactRef:
    try:
        ref = ArtifactRef.parse(rpn)
    except ValueError:
        raise ConfigError(
            f"--rpn {rpn!r} is neither a directory nor train-rpn/<id> of the store"
        ) from None
    if ref.stage is not Stage.TRAIN_RPN:
        raise ConfigError(f"--rpn {rpn!r} is not an RPN: name an artifact of train-rpn")
    return ref
