"""``sdrpn run --dry-run``, and the table of downloads that precedes them."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from data_contracts.configs import PipelineConfig, RuntimeConfig
from flows.console import print_table
from flows.downloads import file_row, size_text
from flows.dry_run import plan_run
from tasks.planned_files import PlannedFile
from tasks.planned_stages import PlannedStage
from tasks.run_plan import RunPlan


def show_plan(console: Console, config: PipelineConfig, runtime: RuntimeConfig) -> None:
    """Print what is left of a run to fetch, make and pay; nothing is fetched or written.

    What a server that does not answer would have said is missing, and the last lines say so.

    Raises:
        SdrpnError: if a file does not exist.
    """
    plan = plan_run(config, runtime)
    weights = () if plan.model is None else plan.model.files
    print_table(console, "Files", [file_row(file) for file in (*plan.files, *weights)])
    print_table(console, "Stages", _stage_rows(plan))
    for line in _summary(plan, runtime):
        console.print(line, highlight=False, soft_wrap=True)


def _summary(plan: RunPlan, runtime: RuntimeConfig) -> list[str]:
    """Disk, time and money in lines; what cannot be known makes a figure a lower bound."""
    at_least = "at least" if plan.unknown_files else "about"
    hours = "about" if plan.is_estimated else "at least"
    lines = [
        f"to fetch: {'at least ' * bool(plan.unknown_files)}{size_text(plan.fetch_bytes)} to "
        f"{plan.downloads_folder}",
        f"to rewrite there: {at_least} {size_text(plan.convert_bytes)} of Parquet, gzipped "
        "archives and Visual-CoT's lines",
        f"to store: {at_least} {size_text(plan.store_bytes)} in {runtime.store}, images of folders "
        "not counted",
        *_model_lines(plan),
        f"free: {size_text(plan.free_bytes)}, of which {size_text(plan.reserve_bytes)} are to stay "
        f"free (downloads.free_gib){_verdict(plan)}",
        f"GPU time: {hours} {plan.gpu_hours:.1f} h for what is left, on one A6000-class card, "
        f"within a factor of two; {hours} {plan.gpu_hours * runtime.gpu_hour_price:.0f} at "
        f"{runtime.gpu_hour_price:g} an hour",
        *(["everything is made: a run would only look it up"] if plan.is_done else []),
    ]
    lines += [f"first: {problem}" for problem in plan.problems]
    if unknown := plan.unknown_files:
        lines.append(
            f"not known: the servers of {len(unknown)} of {len(plan.files)} files do not answer; "
            "no figure counts these, and a run would stop at them now: "
            + ", ".join(file.uri for file in unknown)
        )
    return lines + _unknown_state(plan)


def _unknown_state(plan: RunPlan) -> list[str]:
    """Why some of what is made may have been taken for still to do."""
    stages: dict[str, list[str]] = {}
    for stage in plan.unknown_stages:
        name = f"{stage.stage.value} {stage.source}".strip()
        stages.setdefault(stage.made.problem or "", []).append(name)
    unknown = [f"{', '.join(names)} ({reason})" for reason, names in stages.items()]
    if plan.has_unknown_model and plan.model is not None:
        unknown.append(f"what is made with {plan.model.name} (nobody says at which commit it is)")
    if not unknown:
        return []
    return [f"not looked up, so taken for still to do with all that follows: {'; '.join(unknown)}"]


def _model_lines(plan: RunPlan) -> list[str]:
    """Where the model's weights come to lie; none if they are in a folder of their own."""
    model = plan.model
    if model is None:
        return []
    missing = model.missing_bytes
    if missing is None:
        return [
            f"model: the weights of {model.name} come on top, in {model.folder}; their size is not "
            f"known ({model.problem})"
        ]
    if not missing:
        return [f"model: the weights of {model.name} are in {model.folder}"]
    line = f"model: {size_text(missing)} of weights of {model.name} to fetch to {model.folder}"
    if model.shares_disk:
        return [line]
    verdict = "" if missing <= model.free_bytes else " - NOT ENOUGH"
    return [f"{line}; free there: {size_text(model.free_bytes)}{verdict}"]


def _verdict(plan: RunPlan) -> str:
    if plan.fits:
        return ""
    return f" - NOT ENOUGH for {size_text(plan.needed_bytes - plan.reserve_bytes)} more"


def show_downloads(console: Console, files: Sequence[PlannedFile]) -> None:
    """Print size, digest and licence of files that are about to be fetched."""
    print_table(console, "Downloads", [file_row(file) for file in files])


def _stage_rows(plan: RunPlan) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage.stage.value,
            "source": stage.source,
            "units, about": "unknown" if stage.num_units is None else stage.num_units,
            "shards": "unknown" if stage.num_shards is None else stage.num_shards,
            "state": _state(stage),
            "GPU hours": "unknown" if stage.gpu_hours is None else f"{stage.gpu_hours:.2f}",
        }
        for stage in plan.stages
    ]


def _state(stage: PlannedStage) -> str:
    made = stage.made
    if stage.is_done:
        return "done"
    if made.num_done:
        return f"{made.num_done} of {made.num_shards} shards done"
    return "to do" if made.last_step is None else f"to do from step {made.last_step}"
