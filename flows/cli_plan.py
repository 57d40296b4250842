"""``sdrpn run --dry-run``, and the table of downloads that precedes them."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from data_contracts.addresses import concealed, file_name
from data_contracts.configs import PipelineConfig
from data_contracts.enums import Stage
from data_contracts.runtime import RuntimeConfig
from flows.cli_base import say
from flows.console import print_table, size_text
from flows.downloads import file_row
from flows.dry_run import plan_run
from tasks.planning.files import PlannedFile
from tasks.planning.questions import Certainty, sources_of
from tasks.planning.run_plan import RunPlan
from tasks.planning.sizes import copies_folders
from tasks.planning.stages import PlannedStage

_CERTAINTY = {
    Certainty.COUNTED: "",
    Certainty.AT_MOST: "at most ",
    Certainty.ABOUT: "about ",
    Certainty.AT_LEAST: "at least ",
}
_BY_ROWS = (
    Stage.DOWNLOAD,
    Stage.BUILD_JSONL,
    Stage.EXTRACT_ATTENTION,
    Stage.MAKE_LABELS,
    Stage.EVALUATE,
)
"""Stages with as many shards as their rows take."""
_NUM_NAMED = 3
_LEAST_HOURS = 0.1
"""What is shown of the sum of all hours; of one stage's, a tenth of it."""
_LEAST_COST = 0.01
_CARD_BYTES = 48 << 30
"""Memory of the card that hours are counted for."""
_NO_CENTS = 10


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
    for line in _summary(plan, config, runtime):
        say(line, console)


def _summary(plan: RunPlan, config: PipelineConfig, runtime: RuntimeConfig) -> list[str]:
    """Disk, time and money in lines; what cannot be known makes a figure a lower bound."""
    lines = [
        f"to fetch: {_to_fetch(plan)} to {plan.downloads_folder}",
        *_rewriting_lines(plan),
        f"to store: {_about(plan)} {size_text(plan.store_bytes)} in {runtime.store}"
        f"{_not_counted(config)}",
        *_model_lines(plan),
        *_guess_lines(plan),
        f"free: {size_text(plan.free_bytes)}, of which {size_text(plan.reserve_bytes)} are to stay "
        f"free (downloads.free_gib){_verdict(plan)}",
        *_time_lines(plan, runtime),
        *(["everything is made: a run would only look it up"] if plan.is_done else []),
    ]
    lines += [f"first: {problem}" for problem in plan.problems]
    return lines + _silence(plan) + _unknown_state(plan)


def _to_fetch(plan: RunPlan) -> str:
    size = size_text(plan.fetch_bytes)
    if not plan.unknown_files:
        return size
    return f"at least {size}" if plan.fetch_bytes else "nobody says how much"


def _about(plan: RunPlan) -> str:
    return "at least" if plan.is_lower_bound else "about"


def _rewriting_lines(plan: RunPlan) -> list[str]:
    """Which files are kept a second time; none if none is, as in most runs."""
    names = [file_name(file.uri) for file in plan.files if file.num_rewritten]
    if not names:
        return []
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return [
        f"to rewrite there, so that parts can be read: {_about(plan)} "
        f"{size_text(plan.convert_bytes)} of {', '.join(names[:_NUM_NAMED])}{more}"
    ]


def _not_counted(config: PipelineConfig) -> str:
    """What of the store no figure holds."""
    if not any(copies_folders(source) for source in sources_of(config)):
        return ""
    return ", without the images of folders that are copied (copy_images)"


def _time_lines(plan: RunPlan, runtime: RuntimeConfig) -> list[str]:
    """GPU hours, what they cost, and what they say of a run without a GPU."""
    hours = plan.gpu_hours
    if hours == 0 and plan.is_estimated:
        return ["GPU time: none, nothing that is left runs the model"]
    is_whole = plan.is_estimated and not plan.has_uncounted
    about = "about" if is_whole else "at least"
    time = f"{about} {hours:.1f} h" if hours >= _LEAST_HOURS or not is_whole else "less than 0.1 h"
    cost = f"{about} {_amount(hours * runtime.gpu_hour_price)}"
    if is_whole and 0 < hours * runtime.gpu_hour_price < _LEAST_COST:
        cost = "less than 0.01"
    lines = [
        f"GPU time: {time} for what is left, in hours of an A6000-class card: a rough estimate, "
        "scaled from the paper's time for LLaVA-1.5-7B (expect a factor of two)",
        f"GPU cost: {cost} at {runtime.gpu_hour_price:g} an hour, in your currency (gpu_hour_price "
        "in the runtime settings)",
        *_memory_lines(plan),
    ]
    if plan.is_on_cpu:
        lines.append(
            f"CPU time: not estimated, but this run would use the CPU (device: {runtime.device}). "
            "There the reference run takes minutes; a model of billions of parameters wants a GPU"
        )
    return lines


def _memory_lines(plan: RunPlan) -> list[str]:
    """That the hours are no single card's, where they cannot be."""
    num_bytes = 0 if plan.model is None else plan.model.num_bytes
    if num_bytes < _CARD_BYTES:
        return []
    return [
        f"GPU memory: the weights take {size_text(num_bytes)}, more than one such card holds "
        f"({size_text(_CARD_BYTES)}): a larger one, or several (device_map in the runtime settings)"
    ]


def _amount(money: float) -> str:
    return f"{money:,.0f}" if money >= _NO_CENTS else f"{money:.2f}"


def _silence(plan: RunPlan) -> list[str]:
    """Files whose servers do not answer, each with the reason."""
    unknown = plan.unknown_files
    if not unknown:
        return []
    return [
        f"not known: the servers of {len(unknown)} of {len(plan.files)} files do not answer; no "
        "size counts these, and a run would stop at them now:",
        *(f"  {concealed(file.uri)}: {file.problem}" for file in unknown),
    ]


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


def _guess_lines(plan: RunPlan) -> list[str]:
    """That sizes and hours rest on a guess, where they do."""
    if plan.is_done or not plan.are_sizes_guessed:
        return []
    return [
        "guessed: the model's width, as its config.json is not on this machine yet; what is usual "
        "in its family stands in, and the size of the RPN and GPU time rest on it"
    ]


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
            "questions": _questions(stage),
            "shards": _shards(stage),
            "state": _state(stage),
            "GPU hours": _hours(stage.gpu_hours),
            "to store": size_text(stage.store_bytes),
        }
        for stage in plan.stages
    ]


def _questions(stage: PlannedStage) -> str:
    if stage.num_units is None:
        return "unknown"
    return f"{_CERTAINTY[stage.certainty]}{stage.num_units}"


def _shards(stage: PlannedStage) -> str:
    """As uncertain as the questions, for as long as the store does not say."""
    if stage.num_shards is None:
        return "unknown"
    is_known = stage.made.num_shards is not None or stage.stage not in _BY_ROWS
    return f"{'' if is_known else _CERTAINTY[stage.certainty]}{stage.num_shards}"


def _hours(hours: float | None) -> str:
    if hours is None:
        return "unknown"
    return "< 0.01" if 0 < hours < _LEAST_HOURS / 10 else f"{hours:.2f}"


def _state(stage: PlannedStage) -> str:
    made = stage.made
    if stage.is_done:
        return "done"
    if made.num_done:
        return f"{made.num_done} of {made.num_shards} shards done"
    if made.has_weights:
        return "to do, trained for other regions"
    if made.last_step is None:
        return "to do"
    return f"to do from step {made.last_step} of about {stage.num_steps}"
