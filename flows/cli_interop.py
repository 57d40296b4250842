"""``sdrpn import-labels``, ``import-checkpoint`` and ``export``: what the authors published, in and
out."""

from pathlib import Path
from typing import Annotated

import typer

from data_contracts.enums import Stage
from data_contracts.interop import PublishedLabels
from data_contracts.settings_files import parse_settings
from data_contracts.wording import counted
from flows.cli_base import (
    DeviceOption,
    ForceOption,
    JsonOption,
    ModelOption,
    RpnOption,
    RuntimeOption,
    StoreOption,
    err,
    interruptible,
    kept_in,
    loading,
    out,
    pipeline_config,
    runtime_settings,
    say,
)
from flows.output_files import folder_option, write_json

_GIB = 2**30


def import_labels(
    files: Annotated[
        list[str], typer.Argument(help="Label pickles (.pkl): paths or URIs.", show_default=False)
    ],
    images: Annotated[
        str, typer.Option(help="Folder that the rows' image paths (gqa/images/...) start from.")
    ],
    until: Annotated[
        Stage,
        typer.Option(
            metavar="<stage>",
            help="Last stage: make-labels, merge-labels and train-rpn need --config.",
        ),
    ] = Stage.EXTRACT_ATTENTION,
    config: Annotated[
        str | None,
        typer.Option(
            "--config", "-c", help="Configuration of the stages after the import, for --until."
        ),
    ] = None,
    store: StoreOption = None,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    force: ForceOption = False,
    json_file: JsonOption = None,
) -> None:
    """Import the authors' label pickles as attention, which labels are made from.

    Pickles are read without running anything in them. Rows that cannot be used are kept, each with
    its reason.
    """
    labels = parse_settings(PublishedLabels, {"files": files, "images": images}, "import-labels")
    settings = None if config is None else pipeline_config(config)
    how = runtime_settings(runtime, store=store, device=device)
    with loading():
        from flows.console import ProgressDisplay, print_table
        from flows.execution import LocalExecution
        from flows.interop_flow import run_import
        from flows.outcome import RunOutcome
        from tasks.import_labels import import_summary
    with interruptible(kept_in(how.store)), ProgressDisplay(err) as display:
        execution = LocalExecution(how, {Stage.EXTRACT_ATTENTION} if force else (), display)
        attention = run_import(labels, settings, execution, until)
    outcome = RunOutcome(stages=tuple(execution.outcomes))
    summary = import_summary(execution.store, attention)
    print_table(out, "Stages", outcome.stage_table())
    print_table(
        out,
        "Rejected rows",
        [{"reason": reason, "rows": count} for reason, count in summary.reasons.items()],
    )
    say(
        f"{counted(summary.num_imported, 'row')} imported, {summary.num_rejected:,} rejected "
        f"({summary.rejects})"
    )
    if json_file is not None:
        write_json(json_file, {"stages": outcome.stage_table(), **summary.to_dict()})


def import_checkpoint(
    folder: Annotated[
        Path, typer.Argument(help="Full-model checkpoint of the authors.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option("--out", help="Folder to write the RPN to.", callback=folder_option),
    ],
    profile: Annotated[
        str | None,
        typer.Option(
            help="Model profile: a packaged name, or a YAML file.", show_default="the one that fits"
        ),
    ] = None,
    branch_layer: Annotated[
        int | None,
        typer.Option(
            min=1, help="Layer where the RPN branches off (B), if the checkpoint does not say."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Region threshold.", show_default="its own, else one of the authors'"
        ),
    ] = None,
    regions: Annotated[
        str | None,
        typer.Option(
            help="Region settings: reference-boxes, reference-mask or default.",
            show_default="its own, else the authors'",
        ),
    ] = None,
) -> None:
    """Take the RPN out of a full-model checkpoint of the authors.

    Only the RPN's tensors are read. The folder it writes works wherever a trained RPN does:
    `sdrpn predict --rpn`, `ZoomPipeline.from_pretrained`.
    """
    with loading():
        from tasks.foreign_checkpoints import import_checkpoint as run
    with err.status("reading"):
        found = run(
            folder,
            output,
            profile=profile,
            branch_layer=branch_layer,
            threshold=threshold,
            regions=regions,
        )
    for line in (
        f"RPN of {found.profile}: B = {found.branch_layer} ({found.source}), R = {found.depth}, "
        f"{found.num_parameters:,} parameters, threshold {found.threshold:g}",
        f"written to {output}; use it beside {found.model_id}",
    ):
        say(line)


def export(
    output: Annotated[Path, typer.Option("--out", help="Folder to write.", callback=folder_option)],
    rpn: RpnOption = None,
    model: ModelOption = None,
    max_shard_gib: Annotated[
        float, typer.Option(min=0.001, help="Most GiB of weights in one file.")
    ] = 4.5,
    store: StoreOption = None,
    runtime: RuntimeOption = None,
) -> None:
    """Write model and RPN as one full checkpoint, named as the authors name theirs."""
    how = runtime_settings(runtime, store=store)
    with loading():
        from tasks.artifacts.store import ArtifactStore
        from tasks.foreign_checkpoints import export_checkpoint
    with err.status("writing"):
        names = export_checkpoint(
            ArtifactStore.of(how),
            rpn,
            model,
            output,
            max_shard_bytes=int(max_shard_gib * _GIB),
        )
    num_shards = sum(name.endswith(".safetensors") for name in names)
    say(f"{counted(num_shards, 'weight file')} in {output}")
