"""A run: what stands in its way is found out first, then stages are made, then it is told of."""

import logging

from data_contracts.configs import PipelineConfig
from data_contracts.enums import Stage
from data_contracts.settings_files import ConfigError
from flows.downloads import OnDownloads, announce_downloads
from flows.execution import Execution
from flows.label_gate import Gate
from flows.outcome import RunOutcome
from flows.wiring import Pipeline, needs_model
from tasks.benchmark_table import read_table, table_uris
from tasks.calibrate import page_uri
from tasks.evaluate import read_results
from tasks.models import require_model
from tasks.report import report_uri

logger = logging.getLogger(__name__)

_BEFORE_LABEL_SET = tuple(Stage)[: tuple(Stage).index(Stage.MERGE_LABELS)]


def run_pipeline(
    config: PipelineConfig,
    execution: Execution,
    until: Stage = Stage.REPORT,
    gate: Gate | None = None,
    on_downloads: OnDownloads = lambda files: None,
) -> RunOutcome:
    """Run every stage that ``until`` needs, and it; committed artifacts are not made again.

    Args:
        config: what to compute.
        execution: how to.
        until: last stage.
        gate: promotes the label set once it is made, or stops the run; None for no promotion.
        on_downloads: shown what is still to be fetched, before anything is.

    Raises:
        ConfigError: if ``until`` is a stage that the config does not have, or comes before the
            labels that are to be promoted.
        DownloadError: if what is to be fetched cannot be had, or does not fit on the disk.
        ModelError: before anything is fetched, if the model or its device cannot be had.
    """
    if gate is not None and until in _BEFORE_LABEL_SET:
        raise ConfigError(f"labels cannot be promoted at {until.value}: go on to merge-labels")
    execution.store.check_writable()
    pipeline = Pipeline(config, execution)
    if announce_downloads(pipeline.sources(until), execution, on_downloads) and needs_model(until):
        # Hours of downloads would delay it.
        execution.require_device()
        execution.ask(Stage.DOWNLOAD, "model", require_model, config.model)
    promotion = None
    if gate is not None:
        pipeline.make(Stage.MERGE_LABELS)  # not the set alone: settings are checked first
        promotion = gate(execution.store, config.name, pipeline.label_set())
    pipeline.make(until)
    store = execution.store
    evaluations = pipeline.evaluations() if pipeline.is_made(Stage.EVALUATE) else ()
    tables = {e.source.name: read_results(store, pipeline.results(e)) for e in evaluations}
    for name, found in tables.items():
        if not found.methods:
            logger.warning(
                f"evaluation of {name!r} has no results: none of its questions has a true box, and "
                "evaluation.methods asks for the oracle alone; give `boxes`, or other methods"
            )
    table = pipeline.table() if pipeline.is_made(Stage.EVALUATE) else None
    report = pipeline.report() if pipeline.is_made(Stage.REPORT) else None
    calibration = pipeline.calibration() if pipeline.is_made(Stage.CALIBRATE) else None
    return RunOutcome(
        stages=tuple(execution.outcomes),
        results=tables.pop(evaluations[0].source.name) if evaluations else None,
        evaluated=evaluations[0].source.name if evaluations else "",
        benchmarks=tables,
        comparison=None if table is None else read_table(store, table),
        table_uris=() if table is None else table_uris(store, table),
        report_uri=None if report is None else report_uri(store, report),
        calibration_uri=None if calibration is None else page_uri(store, calibration),
        promotion=promotion,
    )
