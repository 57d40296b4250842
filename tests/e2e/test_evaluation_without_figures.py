"""Evaluations that no figure can come of: what a run says of them, and when."""

import json
from pathlib import Path

import pytest

from data_contracts.configs import EvaluationConfig, ModelConfig, PipelineConfig
from data_contracts.enums import Method, QuestionKind, Stage
from data_contracts.profiles import UncalibratedProfile
from data_contracts.runtime import RuntimeConfig
from data_contracts.settings_files import ConfigError
from data_contracts.sources import LlavaMixSource, Selection
from flows.dry_run import plan_run
from flows.execution import LocalExecution
from flows.run import run_pipeline
from sdrpn_core.models.errors import UnfitSetting
from tasks.models import profile_of
from tasks.unanswered import NoAnswers
from tests.families.deepseek import tiny_deepseek_vl
from tests.pipelines import write_tiny_pipeline


def evaluation_of(config: PipelineConfig) -> tuple[EvaluationConfig, LlavaMixSource]:
    assert config.evaluation is not None
    assert isinstance(config.evaluation.source, LlavaMixSource)
    return config.evaluation, config.evaluation.source


def test_a_configuration_without_evaluation_has_nothing_to_evaluate(tmp_path: Path) -> None:
    """The run made questions, and ended well without a word."""
    config = write_tiny_pipeline(tmp_path).model_copy(update={"evaluation": None})
    runtime = RuntimeConfig(store=str(tmp_path / "store"), device="cpu")
    with pytest.raises(ConfigError, match="config 'tiny' has no 'evaluation': add the section"):
        run_pipeline(config, LocalExecution(runtime), Stage.EVALUATE)
    assert not (tmp_path / "store" / Stage.DOWNLOAD.value).exists()


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


@pytest.mark.parametrize("folders", [None, ("gqa",)])
def test_questions_of_a_kind_without_heads_stop_a_run_before_anything_is_extracted(
    tmp_path: Path, folders: tuple[str, ...] | None
) -> None:
    """Those trained on stopped it at their first shard; held-out ones alone, after training."""
    config = write_tiny_pipeline(tmp_path)
    profile = profile_of(config.model)
    natural = {QuestionKind.NATURAL: profile.heads[QuestionKind.NATURAL]}
    model = ModelConfig(profile=profile.model_copy(update={"heads": natural}))
    (source,) = config.sources
    assert isinstance(source, LlavaMixSource)
    selected = source.model_copy(update={"selection": Selection(folders=folders)})
    config = config.model_copy(update={"model": model, "sources": (selected,)})
    runtime = RuntimeConfig(store=str(tmp_path / "store"), device="cpu")
    told = "'tiny-llava' has no heads for textual questions"
    with pytest.raises(UncalibratedProfile, match=told):
        run_pipeline(config, LocalExecution(runtime))
    with pytest.raises(UncalibratedProfile, match=told):
        plan_run(config, runtime)
    assert not (tmp_path / "store" / Stage.EXTRACT_ATTENTION.value).exists()


def test_gradients_that_a_family_has_not_stop_a_run_before_anything_is_fetched(
    tmp_path: Path,
) -> None:
    """They stopped it after training, at the first question."""
    config = write_tiny_pipeline(tmp_path)
    model = ModelConfig(profile=tiny_deepseek_vl(tmp_path / "deepseek"))
    evaluation = evaluation_of(config)[0].model_copy(
        update={"methods": (Method.BASE, Method.VICROP_PURE_GRAD)}
    )
    config = config.model_copy(update={"model": model, "evaluation": evaluation})
    runtime = RuntimeConfig(store=str(tmp_path / "store"), device="cpu")
    with pytest.raises(UnfitSetting, match="vicrop_pure_grad_high are for families"):
        run_pipeline(config, LocalExecution(runtime))
    with pytest.raises(ConfigError, match="leave these methods out"):
        plan_run(config, runtime)
    assert not (tmp_path / "store" / Stage.DOWNLOAD.value).exists()
