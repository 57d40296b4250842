"""Command line of the project. Anything heavy is imported inside the command that needs it."""

import logging
import shlex
import sys
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from data_contracts.configs import PipelineConfig
from data_contracts.enums import Stage
from data_contracts.runtime import RuntimeConfig
from data_contracts.settings_files import ConfigError
from data_contracts.sources import SceneSource
from data_contracts.wording import counted
from flows.cli_artifacts import artifacts
from flows.cli_attention import attention
from flows.cli_base import (
    BatchSizeOption,
    ConfigOption,
    DataOption,
    DeviceOption,
    ForceOption,
    ImagesOption,
    JsonOption,
    OneLineErrors,
    PrintableFormatter,
    ProfileOption,
    RuntimeOption,
    StoreOption,
    WorkersOption,
    err,
    interruptible,
    kept_in,
    loading,
    out,
    pipeline_config,
    runs_under_prefect,
    runtime_settings,
    say,
)
from flows.cli_calibrate import calibrate
from flows.cli_doctor import doctor
from flows.cli_interop import export, import_checkpoint, import_labels
from flows.cli_labels import labels
from flows.cli_predict import predict
from flows.config_files import DEFAULT
from flows.outcome import RunOutcome
from flows.output_files import file_option, new_folder_option, write_file, write_json

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="A zoom lens for multimodal LLMs: finds where to look, without any annotation.",
)
app.add_typer(artifacts, name="artifacts")
app.add_typer(labels, name="labels")


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        from tasks.artifacts.provenance import code_version

        say(f"sdrpn {code_version()}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option(help="Show log messages and tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_tell_version),
    ] = False,
) -> None:
    """Options of every command."""
    del version  # told before
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")  # paths in another encoding, as they are
    to_terminal = logging.StreamHandler()
    to_terminal.setFormatter(PrintableFormatter("%(name)s: %(message)s"))
    # Nothing below INFO: there S3's client logs its requests' headers, the session token included.
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, handlers=[to_terminal])
    logging.getLogger("huggingface_hub").propagate = False  # it prints its lines itself


@app.command()
def run(
    config: ConfigOption = DEFAULT,
    store: StoreOption = None,
    json_file: JsonOption = None,
    data: DataOption = None,
    images: ImagesOption = None,
    profile: ProfileOption = None,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    batch_size: BatchSizeOption = None,
    workers: WorkersOption = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print the plan (downloads, shards, GPU time, disk), then stop.")
    ] = False,
) -> None:
    """Run the whole pipeline: data to labels, RPN, results table and report.

    What is made already is not computed again: if a run stopped, give the same command again, and
    it goes on from there. A model whose profile names no grounding heads is calibrated first. With
    PREFECT_API_URL set, the run shows in Prefect's UI.
    """
    settings = pipeline_config(config, data, images, profile)
    how = runtime_settings(
        runtime, store=store, device=device, batch_size=batch_size, num_workers=workers
    )
    if dry_run:
        if json_file is not None:
            raise ConfigError(
                "--json is the summary of a run, and --dry-run makes none: leave one out"
            )
        with loading():
            from flows.cli_plan import show_plan

        show_plan(out, settings, how)
        return
    _finish(_execute(settings, how, Stage.REPORT, force=False), json_file)


@app.command()
def stage(
    name: Annotated[Stage, typer.Argument(help="Last stage to run.", show_default=False)],
    config: ConfigOption = DEFAULT,
    store: StoreOption = None,
    force: ForceOption = False,
    json_file: JsonOption = None,
    data: DataOption = None,
    images: ImagesOption = None,
    profile: ProfileOption = None,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    batch_size: BatchSizeOption = None,
    workers: WorkersOption = None,
) -> None:
    """Run the pipeline up to one stage; what is made already is not computed again."""
    if name is Stage.EVALUATE and data is not None:
        raise ConfigError(
            "there is nothing to evaluate on: --data takes the place of the configuration's "
            "sources and leaves its evaluation out. Stop at train-rpn, or write a configuration "
            "with your data in 'sources' and held-out questions in 'evaluation.source'"
        )
    settings = pipeline_config(config, data, images, profile)
    how = runtime_settings(
        runtime, store=store, device=device, batch_size=batch_size, num_workers=workers
    )
    _finish(_execute(settings, how, name, force=force), json_file)


@app.command()
def report(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Copy the page to this file.", callback=file_option),
    ] = None,
    config: ConfigOption = DEFAULT,
    store: StoreOption = None,
    force: ForceOption = False,
    data: DataOption = None,
    images: ImagesOption = None,
    profile: ProfileOption = None,
    runtime: RuntimeOption = None,
) -> None:
    """Make a run's HTML report, and first what it shows and is not made yet."""
    how = runtime_settings(runtime, store=store)
    outcome = _execute(
        pipeline_config(config, data, images, profile), how, Stage.REPORT, force=force
    )
    _finish(outcome, None)
    if output is not None and outcome.report_uri is not None:
        from tasks.artifacts.store import ArtifactStore

        page = ArtifactStore.of(how).read_uri(outcome.report_uri)
        write_file(output, page)
        say(f"copied to {output}")


@app.command()
def scenes(
    folder: Annotated[
        Path,
        typer.Argument(
            help="New folder to write to.", show_default=False, callback=new_folder_option
        ),
    ],
    num_images: Annotated[int, typer.Option(min=1, help="How many images.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other scenes.")] = 0,
    print_scale: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=100,
            help="Size of the print: 1 is too small for the model's input, 4 is readable.",
        ),
    ] = 1.0,
) -> None:
    """Write generated images with questions, in LLaVA's format, to look at or to try a run on.

    Into a new or empty folder only: other files there would be taken for theirs.
    """
    with loading():
        from tasks.sources.scene_files import write_scenes

    source = SceneSource(name="scenes", num_images=num_images, seed=seed, print_scale=print_scale)
    with interruptible(f"{folder} is not whole; delete it before you write it again"):
        written = write_scenes(folder, source)
    say(f"{counted(num_images, 'image')} in {written.images}")
    data = ("--data", str(written.records), "--images", str(written.images))
    store = ("--store", f"{folder.name}_artifacts")
    say(f"use them: {shlex.join(('sdrpn', 'run', *data, *store))}")


# Help lists commands in this order: what a newcomer needs comes first.
for command in (predict, attention, calibrate, import_labels, import_checkpoint, export, doctor):
    app.command()(command)


def _execute(
    config: PipelineConfig, runtime: RuntimeConfig, until: Stage, *, force: bool
) -> RunOutcome:
    with interruptible(kept_in(runtime.store)):
        return _execute_stages(config, runtime, until, force)


def _execute_stages(
    config: PipelineConfig, runtime: RuntimeConfig, until: Stage, force: bool
) -> RunOutcome:
    if runs_under_prefect():
        with loading():
            from flows.pipeline_flow import sdrpn
            from flows.prefect_server import require_server, server_loss_explained
            from tasks.anywhere import config_anywhere, runtime_anywhere

        require_server()
        with server_loss_explained(kept_in(runtime.store)):
            return sdrpn(
                config=config_anywhere(config),
                runtime=runtime_anywhere(runtime),
                stage=until,
                force=force,
            )
    with loading():
        from flows.cli_plan import show_downloads
        from flows.console import ProgressDisplay
        from flows.execution import LocalExecution
        from flows.run import run_pipeline
    with ProgressDisplay(err) as display:
        execution = LocalExecution(runtime, {until} if force else (), display)
        show = partial(show_downloads, err)
        return run_pipeline(config, execution, until, on_downloads=show)


def _finish(outcome: RunOutcome, json_file: Path | None) -> None:
    from flows.console import print_table

    for title, rows in outcome.tables().items():
        print_table(out, title, rows)
    for uri in outcome.table_uris:
        say(f"table: {uri}")
    if outcome.is_reused:
        say("everything was committed before: reused, nothing computed")
    if outcome.calibration_uri is not None:
        say(f"calibration: {outcome.calibration_uri}")
    if outcome.report_uri is not None:
        say(f"report: {outcome.report_uri}")
    if json_file is not None:
        write_json(json_file, outcome.summary())
