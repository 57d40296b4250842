"""Resume points of a running stage: ``checkpoints/step-00000050/`` below its artifact.

Files are named by content and the checkpoint's own manifest, with their digests, is written last,
so a half-written checkpoint does not exist and saving a step again never mixes two savings.
"""

import logging
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

from tasks.artifacts.keys import CHECKPOINTS, MANIFEST
from tasks.storage.digests import digest
from tasks.storage.storage import Storage

logger = logging.getLogger(__name__)

NUM_KEPT = 2


class _CheckpointManifest(BaseModel):
    step: int
    sha256: dict[str, str]
    """File name -> digest of its bytes."""


class _Damaged(Exception):
    """A checkpoint that cannot be used; an older one may do."""


def save_checkpoint(storage: Storage, prefix: str, step: int, files: Mapping[str, bytes]) -> None:
    """Write a checkpoint below an artifact's prefix and drop all but the latest two."""
    folder = _folder(prefix, step)
    digests = {name: digest(data) for name, data in files.items()}
    for name, data in files.items():
        storage.put(_file_key(folder, digests[name], name), data)
    manifest = _CheckpointManifest(step=step, sha256=digests)
    storage.put(f"{folder}/{MANIFEST}", manifest.model_dump_json(indent=2).encode())
    for old in _steps(storage, prefix)[NUM_KEPT:]:
        _remove(storage, _folder(prefix, old))


def load_latest_checkpoint(storage: Storage, prefix: str) -> tuple[int, dict[str, bytes]] | None:
    """Highest step that is complete and undamaged, with its files; None to start afresh."""
    for step in _steps(storage, prefix):
        try:
            return step, _load(storage, _folder(prefix, step))
        except _Damaged as problem:
            logger.warning("checkpoint %s is skipped: %s", _folder(prefix, step), problem)
    return None


def latest_step(storage: Storage, prefix: str) -> int | None:
    """Highest step that was ever begun to be saved; its files are not looked at."""
    return max(_steps(storage, prefix), default=None)


def _load(storage: Storage, folder: str) -> dict[str, bytes]:
    files = {}
    try:
        text = storage.read(f"{folder}/{MANIFEST}")
        for name, sha256 in _CheckpointManifest.model_validate_json(text).sha256.items():
            files[name] = storage.read(_file_key(folder, sha256, name))
            if digest(files[name]) != sha256:
                raise _Damaged(f"{name} does not have its digest")
    except FileNotFoundError as error:
        raise _Damaged("it is incomplete") from error
    except ValidationError as error:
        raise _Damaged("its manifest is damaged") from error
    return files


def _steps(storage: Storage, prefix: str) -> list[int]:
    """Steps that have a folder, highest first."""
    names = storage.folders(f"{prefix}/{CHECKPOINTS}")
    steps = (name.removeprefix("step-") for name in names)
    return sorted((int(step) for step in steps if step.isdigit()), reverse=True)


def _remove(storage: Storage, folder: str) -> None:
    keys = [stored.key for stored in storage.find(folder)]
    storage.delete(sorted(keys, key=lambda key: not key.endswith(f"/{MANIFEST}")))
    storage.remove_empty_folders(folder)


def _folder(prefix: str, step: int) -> str:
    return f"{prefix}/{CHECKPOINTS}/step-{step:08d}"


def _file_key(folder: str, sha256: str, name: str) -> str:
    return f"{folder}/{sha256[:12]}/{name}"
