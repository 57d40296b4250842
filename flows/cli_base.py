"""Parts that all commands share: options, settings from files and options, one-line errors."""

import contextlib
import errno
import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise, takewhile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from data_contracts.addresses import concealed
from data_contracts.configs import PipelineConfig
from data_contracts.errors import SdrpnError, broken_package, one_line
from data_contracts.runtime import RuntimeConfig
from data_contracts.settings_files import ConfigError, load_settings, parse_settings
from data_contracts.sources import LlavaMixSource
from flows.config_files import DEFAULT, load_config
from flows.imports import uncollected
from flows.interrupts import end_of, interrupts_heard
from flows.output_files import file_option
from tasks.storage.errors import DISK_FULL

if TYPE_CHECKING:
    from tasks.artifacts.store import ArtifactStore

out = Console()
err = Console(stderr=True)

_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tabs and newlines, and those that change the direction of what follows."""
_BREAK_IN_PARAGRAPH = re.compile(r"(?<!\n)\n(?!\n)")
_PLAIN = RuntimeConfig()
_GIVEN = "sdrpn.given"

ConfigOption = Annotated[
    str,
    typer.Option("--config", "-c", help="Configuration: a packaged name, or a YAML file."),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        help="Where results are kept: a folder, s3://bucket/prefix, gs://... or memory://x.",
        show_default=_PLAIN.store,
    ),
]
RuntimeOption = Annotated[
    Path | None,
    typer.Option(
        help="YAML file of runtime settings (store, storage_options, device, ...). Options "
        "override it."
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        help="Your own questions (LLaVA's JSON format) instead of the configuration's sources."
    ),
]
ProfileOption = Annotated[
    str | None,
    typer.Option(
        help="Model profile instead of the configuration's: a packaged name, or a YAML file."
    ),
]
ImagesOption = Annotated[
    str | None, typer.Option(help="Folder that the image paths in --data start from.")
]
RpnOption = Annotated[
    str | None,
    typer.Option(
        help="Trained RPN: a folder, or train-rpn/<id> of the store.",
        show_default="the store's newest",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Model: a hub id, a folder, or the name of a packaged profile.",
        show_default="the one the RPN was trained on",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="Torch device; auto takes a GPU if there is one.", show_default=_PLAIN.device
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(min=1, help="Questions per forward pass.", show_default=str(_PLAIN.batch_size)),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that make shards side by side.",
        show_default=str(_PLAIN.num_workers),
    ),
]
ForceOption = Annotated[bool, typer.Option(help="Make the stage again even if it is made.")]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", help="Write a summary to this file.", callback=file_option),
]


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey: names of files, questions and answers may hold
    sequences that clear the screen, turn lines around or type for the user."""
    return _COMMANDS.sub(lambda found: repr(found[0])[1:-1], text)


def say(line: str, console: Console = out, *, style: str | None = None) -> None:
    """Print a line as it is: no brackets are markup, no colons a smiley, and nothing is wrapped."""
    console.print(
        printable(line), style=style, highlight=False, markup=False, emoji=False, soft_wrap=True
    )


class PrintableFormatter(logging.Formatter):
    """Log records as a terminal may be given them; some tell signed addresses, of redirects too."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, and its traceback if it has one."""
        return printable(concealed(super().format(record)))


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Say that a command imports what it needs, which takes seconds.

    Raises:
        SdrpnError: if that cannot be imported.
    """
    try:
        with err.status("loading"), uncollected():
            yield
    except (ImportError, OSError, RuntimeError) as error:
        raise broken_package(error) from error


class OneLineErrors(TyperGroup):
    """Command group that shows errors a user can act on as one line."""

    def __init__(self, **parameters: Any) -> None:
        """The group, with help that is as wide as the terminal."""
        super().__init__(**parameters)
        _join_lines_of_help(self)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember what is given to the command too, as ``invoke`` explains errors."""
        ctx.meta[_GIVEN] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; ``--debug`` lets the traceback through."""
        try:
            _require_values(ctx.meta[_GIVEN], _taking_values(self))
            with interrupts_heard():
                return super().invoke(ctx)
        except SdrpnError as error:
            if ctx.params.get("debug"):
                raise
            say(f"error: {error}", err, style="red")
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
        except OSError as error:
            line = _line_of(error)
            if ctx.params.get("debug") or line is None:
                raise
            say(f"error: {concealed(line)}", err, style="red")
            raise typer.Exit(2 if error.errno == errno.ENAMETOOLONG else 1) from None
        except KeyboardInterrupt as error:
            raise _ended(error) from None


def _join_lines_of_help(command: Any) -> None:
    """Rich keeps the sources' line breaks; only those between paragraphs are meant."""
    command.help = _BREAK_IN_PARAGRAPH.sub(" ", command.help or "")
    for below in getattr(command, "commands", {}).values():
        _join_lines_of_help(below)


def _taking_values(command: Any) -> set[str]:
    """Options of a command, and of those below it, that a value follows."""
    own = {
        name
        for parameter in command.params
        if not getattr(parameter, "is_flag", True)
        for name in parameter.opts
        if name.startswith("-")
    }
    return own.union(*map(_taking_values, getattr(command, "commands", {}).values()))


def _require_values(given: Sequence[str], taking: Collection[str]) -> None:
    """Refuse empty values of options; as a path, one would be the working directory.

    Args:
        given: all arguments.
        taking: options that take a value.

    Raises:
        ConfigError: naming the option.
    """
    options = list(takewhile(lambda text: text != "--", given))
    named = [text.removesuffix("=") for text in options if re.fullmatch(r"--[a-z-]+=", text)]
    named += [option for option, value in pairwise(options) if not value and option in taking]
    if named:
        raise ConfigError(
            f"an empty value follows {named[0]}: give one, or leave the option out; perhaps a "
            "variable of the shell is not set"
        )


_REMEDIES = {
    errno.EACCES: "give the user who runs this access to it, or name another",
    errno.EPERM: "give the user who runs this access to it, or name another",
    errno.EROFS: "name one on a disk that may be written to",
    errno.ENAMETOOLONG: "give a shorter path",
}


def _line_of(error: OSError) -> str | None:
    """What is wrong with a file or the disk, and the remedy; None of what only a trace can tell."""
    if error.errno in DISK_FULL:
        where = f" at {error.filename}" if error.filename else ""
        return f"the disk is full{where}: make room and run again"
    if error.filename is None and not isinstance(error, PermissionError):
        return None
    where = one_line(error) if error.filename is None else f"{error.filename}: {error.strerror}"
    remedy = _REMEDIES.get(error.errno or 0, "check the path (sdrpn --debug shows who asked)")
    return f"{where}; {remedy}"


@contextlib.contextmanager
def interruptible(kept: str) -> Iterator[None]:
    """Say what is kept if Ctrl-C, or SIGTERM, ends the block."""
    try:
        with interrupts_heard():
            yield
    except KeyboardInterrupt as error:
        raise _ended(error, f": {kept}") from None


def kept_in(store: str) -> str:
    """What is kept of commands that make artifacts."""
    return f"what is finished is kept in {store}; the same command goes on from there"


def _ended(error: KeyboardInterrupt, kept: str = "") -> typer.Exit:
    word, status = end_of(error)
    say(f"{word}{kept}", err, style="yellow")
    return typer.Exit(status)


def runtime_settings(runtime_file: Path | None = None, **options: Any) -> RuntimeConfig:
    """Runtime settings: those of the file, then what options say."""
    runtime = (
        RuntimeConfig() if runtime_file is None else load_settings(RuntimeConfig, runtime_file)
    )
    given = {name: value for name, value in options.items() if value is not None}
    return runtime.model_copy(update=given)


def existing_store(store: str | None, runtime_file: Path | None) -> "ArtifactStore":
    """The store of a command that only looks into it: a mistyped name is no empty store."""
    from tasks.artifacts.admin import require_store
    from tasks.artifacts.store import ArtifactStore

    opened = ArtifactStore.of(runtime_settings(runtime_file, store=store))
    require_store(opened)
    return opened


def pipeline_config(
    name_or_path: str = DEFAULT,
    data: str | None = None,
    images: str | None = None,
    profile: str | None = None,
) -> PipelineConfig:
    """The configuration, with the user's own data and profile in place of its own if given."""
    config = load_config(name_or_path, _own_data(data, images))
    if profile is None:
        return config
    model = config.model.model_copy(update={"profile": profile})
    return config.model_copy(update={"model": model})


def _own_data(data: str | None, images: str | None) -> dict[str, object]:
    """Sections of a configuration that the user's own data stands for."""
    if data is None and images is None:
        return {}
    if data is None or images is None:
        raise ConfigError("--data and --images belong together: give both")
    given = {"name": "data", "records": data, "images": images}
    source = parse_settings(LlavaMixSource, given, "--data, --images")
    # The config's benchmark says nothing about the user's pictures.
    name = re.sub(r"[^a-z0-9._-]+", "-", PurePosixPath(data).stem.lower()).strip("-.") or "data"
    return {"name": name, "sources": [source.model_dump(mode="json")], "evaluation": None}


def runs_under_prefect() -> bool:
    """Whether a Prefect server is to orchestrate."""
    return bool(os.environ.get("PREFECT_API_URL"))
