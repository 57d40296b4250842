"""Parameters of an earlier flow run, so that a stage of it can be run again."""

from collections.abc import Collection
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run

from data_contracts.configs import PipelineConfig
from data_contracts.runtime import RuntimeConfig
from data_contracts.settings_files import ConfigError, parse_settings
from flows.config_files import load_config


def parameters_of(run: str) -> tuple[PipelineConfig, RuntimeConfig]:
    """Configuration and runtime settings that a flow run had.

    Args:
        run: id or name; of several runs with one name the latest counts, never the current run.

    Raises:
        ConfigError: if there is no such run, it has not begun, runs name each other, or its
            parameters are not of this release.
    """
    current = flow_run.id
    return _parameters_of(run, frozenset({UUID(current)} if current else ()))


def _parameters_of(run: str, seen: frozenset[UUID]) -> tuple[PipelineConfig, RuntimeConfig]:
    found = _find(run, seen)
    if found.id in seen:
        raise ConfigError(
            f"run {run!r}: leads back to itself, so that it has no configuration; name a run that "
            "was started with one"
        )
    if found.start_time is None and found.state is not None and found.state.is_scheduled():
        raise ConfigError(
            f"run {run!r}: is scheduled and has not begun, so that nothing of it can be made "
            "again; name one that has begun (`prefect flow-run ls` lists both), or give a config"
        )
    given = found.parameters
    if given.get("run") is not None:  # it was a rerun itself
        config, runtime = _parameters_of(str(given["run"]), seen | {found.id})
    else:
        config, runtime = load_config(), RuntimeConfig()
        if "config" in given:
            config = parse_settings(PipelineConfig, given["config"], f"run {run!r}: config")
    if "runtime" in given:
        runtime = parse_settings(RuntimeConfig, given["runtime"], f"run {run!r}: runtime")
    return config, runtime


def _find(run: str, seen: Collection[UUID]) -> FlowRun:
    """The run of an id, or the latest of a name that is none of those already seen."""
    found: list[FlowRun] = []
    with get_client(sync_client=True) as client:
        try:
            return client.read_flow_run(UUID(run))
        except ObjectNotFound:
            pass
        except ValueError:  # a name
            found = client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    name=FlowRunFilterName(any_=[run]),
                    id=FlowRunFilterId(not_any_=list(seen)),
                ),
                sort=FlowRunSort.START_TIME_DESC,
                limit=1,
            )
    if not found:
        raise ConfigError(
            f"run {run!r}: this Prefect server knows no such earlier flow run; "
            "`prefect flow-run ls` lists them"
        )
    return found[0]
