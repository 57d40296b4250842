"""What a process keeps between the shards of an evaluation."""

from pathlib import Path

import pytest

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import EvaluationConfig, ModelConfig
from data_contracts.enums import Stage
from data_contracts.runtime import RuntimeConfig
from data_contracts.sources import SceneSource
from tasks import evaluate
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.models import placement
from tests.rpn_checkpoints import imported_checkpoint


def test_an_evaluator_answers_for_the_runtime_that_it_was_made_for(
    memory_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One that was kept for a device or its threads answered for all others in the process."""
    checkpoint = imported_checkpoint(tmp_path / "model")
    monkeypatch.setattr(evaluate, "stored_checkpoint", lambda store, rpn: checkpoint)
    model = ModelConfig(profile=checkpoint.config.profile)
    settings = EvaluationConfig(source=SceneSource(name="held-out", num_images=1, seed=1))
    rpn = ArtifactRef(stage=Stage.TRAIN_RPN, artifact_id="0" * 20)

    def kept(**changes: object) -> object:
        runtime = RuntimeConfig(device="cpu", num_threads=1).model_copy(update=changes)
        run = StageRun(memory_store, runtime)
        return evaluate._evaluator(evaluate._Setup(rpn, model, settings, placement(runtime), run))

    first = kept()
    assert kept(batch_size=7) is first
    assert kept(num_threads=2) is not first
