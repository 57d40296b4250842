"""Stage ``report``: one self-contained HTML page of what a run made and measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl

from data_contracts.addresses import all_concealed
from data_contracts.artifact import ArtifactRef
from data_contracts.configs import PipelineConfig
from data_contracts.enums import LabelStatus
from data_contracts.label_settings import LabelSettings
from data_contracts.results import Results
from sdrpn_core.evaluation.prediction_rows import regions_of
from sdrpn_core.report import ArtifactLine, Example, ReportData, render_report
from sdrpn_core.report.data import zoom_that_answers
from sdrpn_core.report.gallery import answered_examples, label_example
from sdrpn_core.rpn.config import RpnConfig
from tasks import recipes
from tasks.artifacts.stage import FileShard, StageRun, run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.evaluate import read_results
from tasks.rpn_files import stored_checkpoint
from tasks.shard_statistics import num_usable, status_statistic
from tasks.sources.files import load_image
from tasks.training_warnings import training_warnings

REPORT_NAME = "report.html"


@dataclass(frozen=True)
class ReportInputs:
    """What a report is made from."""

    files: tuple[ArtifactRef, ...]
    questions: tuple[ArtifactRef, ...]
    attention: tuple[ArtifactRef, ...]
    labels: tuple[ArtifactRef, ...]
    """One of each per source, in the order of the config."""
    label_set: ArtifactRef
    rpn: ArtifactRef
    calibration: ArtifactRef | None = None
    """Of the model, if its profile was uncalibrated."""
    predictions: ArtifactRef | None = None
    results: ArtifactRef | None = None

    @property
    def refs(self) -> tuple[ArtifactRef, ...]:
        """All of them, in the order of the stages."""
        first = () if self.calibration is None else (self.calibration,)
        per_source = (*self.files, *self.questions, *self.attention, *self.labels)
        last = (self.label_set, self.rpn, self.predictions, self.results)
        return (*first, *per_source, *(ref for ref in last if ref is not None))


def write_report(
    run: StageRun, inputs: ReportInputs, config: PipelineConfig, labels: LabelSettings
) -> ArtifactRef:
    """Make the page."""

    def make_shard(index: int) -> FileShard:
        data = _gather(run.store, inputs, config, labels)
        return FileShard(REPORT_NAME, render_report(data).encode())

    return run_stage(
        run, recipes.report_recipe(inputs.refs, shown_config(config, inputs)), make_shard
    )


def report_uri(store: ArtifactStore, report: ArtifactRef) -> str:
    """Where to open the page."""
    return store.file_uri(report, REPORT_NAME)


def _gather(
    store: ArtifactStore, inputs: ReportInputs, config: PipelineConfig, labels: LabelSettings
) -> ReportData:
    checkpoint = stored_checkpoint(store, inputs.rpn)
    count = config.report.num_gallery
    counts = store.manifest(inputs.label_set).statistics
    examples: list[Example] = []
    open_image = partial(load_image, store, sha256=None)
    if config.evaluation is not None and inputs.predictions is not None:
        predictions = store.read_frame(inputs.predictions)
        find_regions = partial(
            regions_of,
            threshold=config.evaluation.threshold_beside(checkpoint.config.threshold),
            settings=checkpoint.config.regions,
        )
        zoom = zoom_that_answers(checkpoint.config, set(predictions["method"]))
        examples = answered_examples(predictions, open_image, find_regions, labels, zoom, count)
    return ReportData(
        title=config.name,
        facts=_facts(store, inputs, config, checkpoint.config),
        results=_results(store, inputs, config),
        label_counts={
            status.value: int(counts[name])
            for status in LabelStatus
            if (name := status_statistic(status.value)) in counts
        },
        training_log=checkpoint.metrics,
        rpn=checkpoint.config,
        answered_threshold=None
        if config.evaluation is None
        else config.evaluation.region_threshold,
        examples=examples,
        label_examples=_label_examples(store, inputs, count),
        config=shown_config(config, inputs),
        artifacts=[_line(store, ref) for ref in inputs.refs],
    )


def _results(
    store: ArtifactStore, inputs: ReportInputs, config: PipelineConfig
) -> Sequence[Results]:
    """What was found, called as the configuration calls its source: by their rule alone, anybody's
    pictures would be the ``scenes`` that it was made for."""
    if inputs.results is None or config.evaluation is None:
        return ()
    found = read_results(store, inputs.results)
    return [found.model_copy(update={"benchmark": config.evaluation.source.name})]


def shown_config(config: PipelineConfig, inputs: ReportInputs) -> dict[str, Any]:
    """The configuration as plain data, without settings that had no effect and signatures."""
    unused = {"calibration"} if inputs.calibration is None else set()
    return dict(all_concealed(config.model_dump(mode="json", exclude=unused)))


def _facts(
    store: ArtifactStore, inputs: ReportInputs, config: PipelineConfig, rpn: RpnConfig
) -> list[tuple[str, str]]:
    profile = rpn.profile
    num_questions = sum(num_usable(store.manifest(ref)) for ref in inputs.questions)
    first, last = profile.rpn.branch_layer, profile.rpn.branch_layer + profile.rpn.depth - 1
    facts = [
        ("Model", f"{profile.model_id} ({config.model.dtype})"),
        ("RPN", f"copies of decoder layers {first} to {last}"),
        ("Sources", ", ".join(source.name for source in config.sources)),
        ("Questions", f"{num_questions:,}"),
    ]
    if (recipe := rpn.training) is not None:
        facts.append(
            (
                "Training",
                f"epochs: {recipe.num_epochs}, questions per batch: {recipe.batch_size}, learning "
                f"rate: {recipe.learning_rate:g}, loss: {recipe.loss.type}",
            )
        )
        label_set = store.manifest(inputs.label_set)
        facts += [("Warning", text) for text in training_warnings(label_set, recipe)]
    if inputs.calibration is not None:
        facts.append(("Profile", f"{profile.source} ({inputs.calibration})"))
    return facts


def _label_examples(store: ArtifactStore, inputs: ReportInputs, count: int) -> list[Example]:
    """Samples from the first shard of each source, accepted and rejected ones in turn."""
    examples: list[Example] = []
    open_image = partial(load_image, store, sha256=None)
    share = -(-count // len(inputs.labels))
    for labels_ref, attention_ref in zip(inputs.labels, inputs.attention, strict=True):
        labelled = store.manifest(labels_ref)
        if not labelled.shards:
            continue
        labels = store.read_shard_frame(labelled, 0)
        attention = store.read_shard_frame(store.manifest(attention_ref), 0)
        by_id = {row["question_id"]: row for row in attention.iter_rows(named=True)}
        examples += [
            label_example(row, by_id[row["question_id"]], open_image)
            for row in _mixed(labels, share)
        ]
    return examples[:count]


def _mixed(labels: pl.DataFrame, count: int) -> Sequence[dict[str, Any]]:
    shown = labels.filter(pl.col("status") != LabelStatus.NOT_EXTRACTED.value)
    is_ok = pl.col("status") == LabelStatus.OK.value
    accepted, rejected = shown.filter(is_ok), shown.filter(~is_ok)
    num_rejected = min(rejected.height, max(count // 3, count - accepted.height))
    return [
        *accepted.head(count - num_rejected).iter_rows(named=True),
        *rejected.head(num_rejected).iter_rows(named=True),
    ]


def _line(store: ArtifactStore, ref: ArtifactRef) -> ArtifactLine:
    manifest = store.manifest(ref)
    return ArtifactLine(
        stage=ref.stage.value,
        artifact=ref.artifact_id,
        num_rows=manifest.num_rows or None,
        created_at=manifest.provenance.created_at,
        code_version=manifest.provenance.code_version,
    )
