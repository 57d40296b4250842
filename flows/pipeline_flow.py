"""The Prefect flow ``sdrpn``; its deployments in ``prefect.yaml`` differ in parameters only."""

import re
from collections.abc import Sequence

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from data_contracts.configs import PipelineConfig
from data_contracts.enums import Stage
from data_contracts.label_drift import LabelDrift, PromotionLimits
from data_contracts.runtime import RuntimeConfig
from flows.config_files import load_config
from flows.downloads import file_row
from flows.earlier_run import parameters_of
from flows.label_gate import Gate
from flows.outcome import RunOutcome
from flows.prefect_execution import PrefectExecution
from flows.run import run_pipeline
from tasks.planning.files import PlannedFile


@flow(name="sdrpn", persist_result=False)
def sdrpn(
    config: PipelineConfig = load_config(),  # noqa: B008 - the form's initial values
    runtime: RuntimeConfig = RuntimeConfig(),  # noqa: B008
    stage: Stage = Stage.REPORT,
    force: bool = False,
    promotion: PromotionLimits | None = None,
    run: str | None = None,
) -> RunOutcome:
    """Data set to results table: every stage that is not committed yet, up to ``stage``.

    Args:
        config: what to compute.
        runtime: store, device, batch size, workers; changes no result.
        stage: last stage to run.
        force: make that stage anew even if it is committed.
        promotion: limits within which the new label set takes the place of the promoted one; the
            run fails beyond them. None promotes nothing.
        run: id or name of an earlier flow run, to take its ``config`` from, and its ``runtime``
            unless one is given here.
    """
    if run is not None:
        config, earlier_runtime = parameters_of(run)
        runtime = runtime if runtime != RuntimeConfig() else earlier_runtime
    execution = PrefectExecution(runtime, {stage} if force else ())
    gate = None if promotion is None else Gate(promotion, _show_drift)
    outcome = run_pipeline(config, execution, stage, gate, _show_downloads)
    for title, rows in outcome.tables().items():
        create_table_artifact(
            key=f"sdrpn-{re.sub('[^a-z]+', '-', title.lower())}",
            table=rows,
            description=f"{title}: {config.name}",
        )
    written = {
        "tables": outcome.table_uris,
        "calibration": (outcome.calibration_uri,),
        "report": (outcome.report_uri,),
    }
    for name, uris in written.items():
        _tell_where(name, [uri for uri in uris if uri is not None], config)
    return outcome


def _tell_where(name: str, uris: Sequence[str], config: PipelineConfig) -> None:
    """Where files lie, if there are any, to copy: as a link, a path leads into Prefect's pages."""
    if not uris:
        return
    for uri in uris:
        get_run_logger().info("%s: %s", name, uri)
    lines = "\n".join(uris)
    create_markdown_artifact(
        f"```\n{lines}\n```",
        key=f"sdrpn-{name}",
        description=f"{name.capitalize()}: {config.name}",
    )


def _show_downloads(files: Sequence[PlannedFile]) -> None:
    rows = [file_row(file, whole_digest=True) for file in files]
    for row in rows:
        get_run_logger().info(", ".join(f"{name}: {value}" for name, value in row.items()))
    create_table_artifact(
        key="sdrpn-downloads", table=rows, description="Files that are about to be fetched"
    )


def _show_drift(drift: LabelDrift) -> None:
    create_table_artifact(
        key="sdrpn-label-drift", table=drift.rows(), description="New labels and promoted ones"
    )
