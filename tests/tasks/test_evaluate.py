"""Which questions are evaluated, and what a process keeps between the shards of an evaluation."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import torch

from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.configs import EvaluationConfig, ModelConfig, RecordsConfig
from data_contracts.enums import Method, ScoringMode, Stage
from data_contracts.runtime import RuntimeConfig
from data_contracts.sources import LlavaMixSource, SceneSource
from sdrpn_core.evaluation.methods import Answerer
from tasks import benchmark_table, evaluate
from tasks.artifacts.device_memory import DeviceMemoryFull
from tasks.artifacts.stage import FrameShard, StageRun, run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.benchmark_table import TableInputs, read_table, write_table
from tasks.build_jsonl import build_jsonl
from tasks.document_table import document_table
from tasks.download import download
from tasks.evaluate import (
    make_prediction_shard,
    predictions_recipe,
    read_results,
    summarize_predictions,
)
from tasks.models import placement, profile_of
from tasks.unanswered import NoAnswers
from tests.artifacts import shard_reads, stage_run
from tests.mixes import mix_record, write_image
from tests.rpn_checkpoints import imported_checkpoint

RPN = ArtifactRef(stage=Stage.TRAIN_RPN, artifact_id="0" * 20)


class Evaluated(NamedTuple):
    """One's own questions, ready to be asked with a tiny model."""

    run: StageRun
    questions: ArtifactRef
    files: ArtifactRef
    model: ModelConfig
    settings: EvaluationConfig

    def recipe(self) -> Recipe:
        return predictions_recipe(
            self.run, self.questions, self.files, RPN, self.model, self.settings
        )

    def shard(self, index: int) -> FrameShard:
        return make_prediction_shard(
            self.run,
            self.recipe(),
            index,
            self.questions,
            self.files,
            RPN,
            self.model,
            self.settings,
        )

    def predictions(self) -> ArtifactRef:
        return run_stage(self.run, self.recipe(), self.shard)


@pytest.fixture
def evaluated(
    memory_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Evaluated]:
    """Makes the questions of a mix whose records are answered as told."""
    checkpoint = imported_checkpoint(tmp_path / "model")
    monkeypatch.setattr(evaluate, "stored_checkpoint", lambda store, rpn: checkpoint)

    def make(*answers: str | None, **settings: object) -> Evaluated:
        records = []
        for number, answer in enumerate(answers):
            write_image(tmp_path / f"images/gqa/{number}.png", number)
            record = mix_record(str(number), f"gqa/{number}.png")
            record["conversations"][1:] = (
                [] if answer is None else [{"from": "gpt", "value": answer}]
            )
            records.append(record)
        (tmp_path / "mix.json").write_text(json.dumps(records))
        source = LlavaMixSource(
            name="own", records=f"{tmp_path}/mix.json", images=f"{tmp_path}/images"
        )
        run = stage_run(memory_store)
        files = download(run, source)
        questions = build_jsonl(run, files, source, RecordsConfig())
        config = EvaluationConfig(
            **{"rows_per_shard": 2, "source": source, "methods": (Method.BASE,)} | settings,
            max_new_tokens=2,
        )
        model = ModelConfig(profile=checkpoint.config.profile)
        return Evaluated(run, questions, files, model, config)

    return make


def test_questions_without_an_answer_are_left_out_and_told(
    evaluated: Callable[..., Evaluated], caplog: pytest.LogCaptureFixture
):
    """Whatever was answered to them scored 0, and nobody was told."""
    made = evaluated("red", None, "blue", " ", None)
    frame = made.run.store.read_frame(made.predictions())
    assert sorted(frame["answers"].to_list()) == [["blue"], ["red"]]
    (told,) = [r.getMessage() for r in caplog.records if "reference answer" in r.getMessage()]
    assert told.startswith("source 'own': 3 of 5 questions have no reference answer")


def test_the_table_of_documents_reads_each_question_once(
    evaluated: Callable[..., Evaluated], reads: Counter[str]
):
    """All questions of a shard were read again for each shard of answers to some of them."""
    made = evaluated("red", "blue", "green", "grey", rows_per_shard=1)
    store, predictions = made.run.store, made.predictions()
    reads.clear()
    table = pl.read_parquet(document_table(store, predictions))
    assert shard_reads(store, made.questions, reads) == [1]
    assert sorted(table["question_id"]) == sorted(store.read_frame(made.questions)["question_id"])
    assert table["seconds"].is_not_null().all()


def test_a_batch_that_memory_does_not_hold_is_answered_in_smaller_ones(
    evaluated: Callable[..., Evaluated],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """The run ended there, and a smaller batch size was to be given by hand. Then every shard tried
    the full size again, and nothing said in the end which one had fit."""
    made = evaluated("red", "blue", "green", "grey", "black", rows_per_shard=5)
    whole = made.shard(0)
    real, sizes = Answerer.answer, []

    def answer(self: Answerer, method: Method, images: Any, documents: Any) -> Any:
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return real(self, method, images, documents)

    with monkeypatch.context() as full:
        full.setattr(Answerer, "answer", answer)
        halved = made.shard(0)
        made.shard(0)
    assert sizes == [5, 3, 2, 1, 2, 2, 2, 1], "the next shard begins with what fits"
    assert halved.frame.equals(whole.frame)
    assert halved.measurements["documents.base"] == (2, 1, 2)
    made.predictions()
    assert "evaluate: the device's memory held batches of 2 at most: --batch-size 2" in caplog.text
    with monkeypatch.context() as full:
        full.setattr(Answerer, "answer", fill)
        with pytest.raises(DeviceMemoryFull, match="even a batch of 1"):
            made.shard(0)


def fill(*given: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")


def test_questions_that_nobody_answered_are_no_benchmark(evaluated: Callable[..., Evaluated]):
    """Every way of answering had an accuracy of 0."""
    made = evaluated(None, "")
    with pytest.raises(NoAnswers, match=r"source 'own': not one of its 2 questions has a ref"):
        made.recipe()


def test_only_what_was_evaluated_with_unanswered_questions_is_evaluated_again(
    evaluated: Callable[..., Evaluated],
):
    answered, partly = evaluated("red", "blue").recipe(), evaluated("red", None).recipe()
    assert set(partly.config) - set(answered.config) == {"unanswered"}


def test_the_table_names_the_threshold_that_its_rows_were_answered_with(
    evaluated: Callable[..., Evaluated], monkeypatch: pytest.MonkeyPatch
):
    """It named the RPN's own whatever evaluation.region_threshold said."""
    made = evaluated("red", region_threshold=0.3)
    monkeypatch.setattr(benchmark_table, "stored_checkpoint", evaluate.stored_checkpoint)
    results = summarize_predictions(
        made.run, made.predictions(), made.settings, profile_of(made.model).labels
    )
    inputs = TableInputs(RPN, (("own", results),), ())
    table = write_table(made.run, inputs, "tiny", made.settings)
    assert read_table(made.run.store, table).own_threshold == 0.3


@pytest.mark.parametrize(
    ("rule", "answer"), [("docvqa", "red"), ("chartqa", "12"), ("ocrbench", "red")]
)
def test_ones_own_questions_are_scored_by_any_rule_that_takes_one_answer(
    evaluated: Callable[..., Evaluated], rule: str, answer: str
):
    """ChartQA's and OCRBench's failed after training: there was no column 'answer'."""
    made = evaluated(answer, benchmark=rule)
    results = summarize_predictions(
        made.run, made.predictions(), made.settings, profile_of(made.model).labels
    )
    figures = read_results(made.run.store, results).figures[Method.BASE]
    assert {mode: set(found) for mode, found in figures.items()} == {
        mode: {"accuracy"} for mode in ScoringMode
    }


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
