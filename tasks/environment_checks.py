"""Is this machine ready? One check each for what a run needs, with the remedy where it is not."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from data_contracts.errors import SdrpnError, broken_package
from data_contracts.runtime import RuntimeConfig
from tasks.artifacts.store import ArtifactStore
from tasks.fetching.addresses import downloads_folder, free_bytes
from tasks.fetching.hub_remote import ask_hub, is_offline
from tasks.storage.errors import StoreError

_GIB = 1 << 30
_SHOWN = ("torch", "transformers", "polars", "prefect")
_WANTED_MEMORY_GIB = 16
_WANTED_DISK_GIB = 60
_WANTED_GPU_GIB = 20


@dataclass(frozen=True)
class Check:
    """Outcome of one check."""

    name: str
    state: str
    """``ok``, ``warning`` (some runs will not work) or ``error`` (none will)."""
    found: str
    remedy: str = ""


def check_environment(runtime: RuntimeConfig) -> list[Check]:
    """Run every check; nothing stays behind (the store gets a small object that is removed)."""
    checks: list[Callable[[], Check]] = [
        _python,
        _packages,
        _gpu,
        _memory,
        lambda: _disk(runtime),
        lambda: _store(runtime),
        lambda: _hub(runtime),
    ]
    return [check() for check in checks]


def _python() -> Check:
    return Check("Python", "ok", ".".join(str(part) for part in sys.version_info[:3]))


def _packages() -> Check:
    """Whether what the project asks for is there, in those versions, and can be loaded."""
    found = ", ".join(f"{name} {_installed(name) or 'missing'}" for name in _SHOWN)
    wrong = [f"{needed.name}{needed.specifier}" for needed in _needed() if not _is_met(needed)]
    if wrong:
        remedy = f"pip install {' '.join(repr(text) for text in wrong)}"
        return Check("packages", "error", found, remedy)
    try:
        import sdrpn_core.pipeline  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return Check("packages", "error", found, str(broken_package(error)))
    return Check("packages", "ok", found)


def _needed() -> list[Requirement]:
    """What the installation asks for, without extras; itself, if it is not installed."""
    if _installed("sdrpn") is None:
        return [Requirement("sdrpn")]
    listed = [Requirement(line) for line in requires("sdrpn") or ()]
    return [one for one in listed if one.marker is None or one.marker.evaluate({"extra": ""})]


def _is_met(needed: Requirement) -> bool:
    installed = _installed(needed.name)
    return installed is not None and needed.specifier.contains(installed, prereleases=True)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        remedy = "7B models need a CUDA device; the reference run does not"
        return Check("GPU", "warning", "none that torch can use", remedy)
    device = torch.cuda.get_device_properties(0)
    size = device.total_memory / _GIB
    found = f"{torch.cuda.device_count()} x {device.name}, {size:.0f} GiB"
    if size < _WANTED_GPU_GIB:
        return Check("GPU", "warning", found, "take a 3B model, or a card of 24 GB and more for 7B")
    return Check("GPU", "ok", found)


def _memory() -> Check:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    found = f"{size:.0f} GiB"
    if size < _WANTED_MEMORY_GIB:
        remedy = "set runtime feature_cache_gib: 0 and num_workers: 1, or take a larger machine"
        return Check("memory", "warning", found, remedy)
    return Check("memory", "ok", found)


def _disk(runtime: RuntimeConfig) -> Check:
    folder = downloads_folder(runtime)
    size = free_bytes(folder) / _GIB
    found = f"{size:.0f} GiB free for {folder}"
    if size < _WANTED_DISK_GIB:
        remedy = (
            f"GQA and OCR-VQA need {_WANTED_DISK_GIB} GiB: set downloads.folder to a larger disk"
        )
        return Check("disk", "warning", found, remedy)
    return Check("disk", "ok", found)


def _store(runtime: RuntimeConfig) -> Check:
    try:
        ArtifactStore.of(runtime).check_writable()
    except StoreError as error:
        return Check("store", "error", runtime.store, str(error))
    except (SdrpnError, OSError) as error:
        return Check("store", "error", runtime.store, f"{error}; check the URI and credentials")
    return Check("store", "ok", f"{runtime.store} can be written")


def _hub(runtime: RuntimeConfig) -> Check:
    if is_offline():
        remedy = "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE to use more than its cache holds"
        return Check("hub", "warning", "is not to be asked (offline mode)", remedy)
    endpoint, problem = ask_hub(runtime.downloads)
    if problem is not None:
        remedy = "check the network, HF_ENDPOINT and `hf auth login`; local sources work without"
        return Check("hub", "warning", f"{endpoint}: {problem}", remedy)
    return Check("hub", "ok", endpoint)
