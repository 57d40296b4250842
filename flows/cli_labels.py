"""``sdrpn labels``: how new labels differ from the promoted ones, and promoting them."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from data_contracts.enums import Stage
from data_contracts.label_drift import LabelDrift, PromotionLimits
from data_contracts.settings_files import load_settings
from flows.cli_base import (
    ConfigOption,
    DeviceOption,
    JsonOption,
    RuntimeOption,
    StoreOption,
    err,
    existing_store,
    interruptible,
    kept_in,
    loading,
    out,
    pipeline_config,
    runtime_settings,
    say,
)
from flows.config_files import DEFAULT
from flows.output_files import write_json

labels = typer.Typer(no_args_is_help=True, help="Compare label sets, and promote them.")


@labels.command()
def promote(
    config: ConfigOption = DEFAULT,
    store: StoreOption = None,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    limits: Annotated[
        Path | None,
        typer.Option(help="YAML file of PromotionLimits (max_lost_ratio, min_box_overlap, ...)."),
    ] = None,
    force: Annotated[
        bool, typer.Option(help="Promote however much the labels differ; this is recorded.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Make a configuration's labels the ones that stand, if they have not drifted too far.

    Makes the labels first if need be, and shows how they differ from those promoted before. Beyond
    the limits it ends with an error and nothing changes.
    """
    settings = pipeline_config(config)
    how = runtime_settings(runtime, store=store, device=device)
    allowed = PromotionLimits() if limits is None else load_settings(PromotionLimits, limits)
    with loading():
        from flows.cli_plan import show_downloads
        from flows.console import ProgressDisplay
        from flows.execution import LocalExecution
        from flows.label_gate import Gate
        from flows.run import run_pipeline
    with interruptible(kept_in(how.store)), ProgressDisplay(err) as display:
        execution = LocalExecution(how, (), display)
        gate = Gate(allowed, _show, force)
        show = partial(show_downloads, err)
        outcome = run_pipeline(settings, execution, Stage.MERGE_LABELS, gate, show)
    promotion = outcome.promotion
    assert promotion is not None
    for breach in promotion.overruled:
        say(f"promoted in spite of: {breach}", err)
    say(f"promoted: {promotion.label_set}")
    if json_file is not None:
        write_json(json_file, promotion.model_dump(mode="json"))


@labels.command()
def history(
    config: ConfigOption = DEFAULT, store: StoreOption = None, runtime: RuntimeOption = None
) -> None:
    """List the label sets promoted for a configuration; the last one stands."""
    from flows.console import print_table
    from tasks.promote_labels import promotions

    name = pipeline_config(config).name
    found = promotions(existing_store(store, runtime), name)
    print_table(
        out,
        f"Promoted labels of {name}",
        [
            {
                "label set": entry.label_set,
                "promoted": entry.promoted_at,
                "labelled": entry.drift.new.num_labelled,
                "overruled": "; ".join(entry.overruled),
            }
            for entry in found
        ],
    )
    if not found:
        say("nothing promoted yet: sdrpn labels promote")


def _show(drift: LabelDrift) -> None:
    from flows.console import print_table

    print_table(out, "Label drift", drift.rows())
