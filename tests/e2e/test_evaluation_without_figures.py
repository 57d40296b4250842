"""Evaluations that no figure can come of: what a run says of them, and when."""

import json
from pathlib import Path

import pytest

from data_contracts.configs import EvaluationConfig, PipelineConfig
from data_contracts.enums import Method, Stage
from data_contracts.runtime import RuntimeConfig
from data_contracts.sources import LlavaMixSource
from flows.dry_run import plan_run
from flows.execution import LocalExecution
from flows.run import run_pipeline
from tasks.unanswered import NoAnswers
from tests.pipelines import write_tiny_pipeline


def evaluation_of(config: PipelineConfig) -> tuple[EvaluationConfig, LlavaMixSource]:
    assert config.evaluation is not None
    assert isinstance(config.evaluation.source, LlavaMixSource)
    return config.evaluation, config.evaluation.source


@pytest.mark.parametrize("until", [Stage.EVALUATE, Stage.REPORT])
def test_questions_that_nobody_answered_stop_a_run_before_anything_is_extracted(
    tmp_path: Path, until: Stage
) -> None:
    """An evaluation without a single reference answer came to an accuracy of 0, after training."""
    config = write_tiny_pipeline(tmp_path)
    mix = Path(str(evaluation_of(config)[1].records))
    records = json.loads(mix.read_text())
    mix.write_text(json.dumps([r | {"conversations": r["conversations"][:1]} for r in records]))
    runtime = RuntimeConfig(store=str(tmp_path / "store"), device="cpu")
    told = "'held_out': not one of its 4 questions has a ref"
    with pytest.raises(NoAnswers, match=told):
        run_pipeline(config, LocalExecution(runtime), until)
    with pytest.raises(NoAnswers, match=told):
        plan_run(config, runtime)
    assert not (tmp_path / "store" / Stage.EXTRACT_ATTENTION.value).exists()


def test_an_oracle_without_true_boxes_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run ended well, without a results table and without a word."""
    config = write_tiny_pipeline(tmp_path)
    evaluation, source = evaluation_of(config)
    changes = {"source": source.model_copy(update={"boxes": None}), "methods": (Method.ORACLE,)}
    config = config.model_copy(update={"evaluation": evaluation.model_copy(update=changes)})
    runtime = RuntimeConfig(store=str(tmp_path / "store"), device="cpu")
    told = "evaluation of 'held_out' has no results: none of its questions has a true box, and"
    for _ in range(2):  # the second run finds everything made
        caplog.clear()
        outcome = run_pipeline(config, LocalExecution(runtime))
        assert outcome.results is not None
        assert not outcome.results.methods
        assert [line.startswith(told) for line in caplog.messages].count(True) == 1
