"""Who made an artifact, when and with what. Recorded in manifests, never part of identity."""

import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from data_contracts.artifact import Provenance

_PACKAGES = ("numpy", "polars", "prefect", "pyarrow", "torch", "transformers")


def collect_provenance() -> Provenance:
    """Describe this process, now."""
    return Provenance(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=code_version(),
        host=platform.node(),
        packages=_package_versions(),
    )


@cache
def code_version() -> str:
    """Package version, and git commit when run from a checkout: ``0.1.0+g1a2b3c4d5e6f.dirty``."""
    version = _version("sdrpn")
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return version
    describe = ["git", "describe", "--always", "--dirty=.dirty", "--abbrev=12", "--exclude=*"]
    try:
        outcome = subprocess.run(
            describe, cwd=checkout, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return version  # no git program, or a checkout it refuses: the version is what is known
    return f"{version}+g{outcome.stdout.strip()}"


@cache
def _package_versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
