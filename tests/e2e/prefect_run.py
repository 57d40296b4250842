"""A run under a Prefect server, as the command line starts it, caught in its middle."""

import subprocess
import sys
import time
from pathlib import Path

import yaml

from data_contracts.enums import Stage
from tests.architecture.source_tree import CHECKOUT
from tests.e2e.command_line import sdrpn
from tests.e2e.prefect_server import PrefectServer
from tests.pipelines import write_tiny_pipeline


def start_run(prefect: PrefectServer, folder: Path, *options: str) -> subprocess.Popen[str]:
    """A run of many shards, in a session of its own, when the first is made.

    What comes before is made here: every stage starts workers of its own, which takes seconds.
    """
    settings = write_tiny_pipeline(folder, num_images=60)
    extraction = settings.extraction.with_changes(rows_per_shard=1)
    settings = settings.model_copy(update={"extraction": extraction})
    (folder / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    store = folder / "store"
    begun = sdrpn("stage", Stage.BUILD_JSONL, *run_arguments(folder)[1:])
    assert begun.exit_code == 0, begun.output
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", *run_arguments(folder), *options],
        cwd=CHECKOUT,
        env=prefect.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(store.glob("extract-attention/*/receipts/*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)  # without end: pytest has a limit
    return process


def run_arguments(folder: Path) -> tuple[str, ...]:
    """What the command of ``start_run`` is, to give it again."""
    return ("run", "--config", str(folder / "config.yaml"), "--store", str(folder / "store"))
