"""The command line in this process, and what a first run leaves to be looked at."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from data_contracts.configs import PipelineConfig
from flows.cli import app
from tasks.artifacts.store import ArtifactStore


def sdrpn(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def is_anyone_left(group: int) -> bool:
    """Of the processes that were started in a session of their own."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass(frozen=True)
class FirstRun:
    """``sdrpn run``, ended."""

    folder: Path
    config: PipelineConfig
    store: ArtifactStore
    result: Result

    @property
    def options(self) -> tuple[str, ...]:
        return ("--config", f"{self.folder}/config.yaml", "--store", self.store.root)

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())


def first_run(folder: Path, config: PipelineConfig) -> FirstRun:
    """Run the configuration in ``folder/config.yaml``, without a Prefect server."""
    store = ArtifactStore(str(folder / "store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.setenv("COLUMNS", "200")
        options = ("--config", folder / "config.yaml", "--store", store.root)
        result = sdrpn("run", *options, "--json", folder / "summary.json")
    return FirstRun(folder, config, store, result)
