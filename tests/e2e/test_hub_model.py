"""A model of the hub that changes between two runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_contracts.artifact import ArtifactRef
from tasks.artifacts.store import ArtifactStore
from tests.e2e.changing_hub import LATER
from tests.hub_server import COMMIT


@pytest.mark.slow
def test_changed_hub_model_reuses_no_attention_of_the_one_before(tmp_path: Path) -> None:
    """An unpinned model was identified by its name: new weights, and the old labels."""
    hidden = {"HF_TOKEN", "HF_HUB_CACHE"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.e2e.changing_hub", str(tmp_path)],
        env={name: value for name, value in os.environ.items() if name not in hidden},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    store = ArtifactStore(f"{tmp_path}/store")
    printed = [line.split() for line in run.stdout.splitlines()]
    # A plan knows of the new commit before the run does, and of what was made with it after.
    assert [states for _, *states in printed] == [["False", "True"]] * 2
    first, second = (ArtifactRef.parse(ref) for ref, *_ in printed)
    assert first != second
    for ref, commit in ((first, COMMIT), (second, LATER)):
        manifest = store.manifest(ref)
        assert manifest.recipe.config["model"]["revision"] == commit
        assert manifest.statistics["reused_rows"] == 0
    maps = [store.read_frame(ref, ["question_id", "grounding"]) for ref in (first, second)]
    assert maps[0]["question_id"].equals(maps[1]["question_id"])
    assert not maps[0]["grounding"].equals(maps[1]["grounding"])
