"""``sdrpn artifacts``: what is in a store, what one artifact holds, what can go."""

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from data_contracts.artifact import ArtifactRef
from data_contracts.enums import Stage
from data_contracts.settings_files import ConfigError
from data_contracts.wording import counted
from flows.cli_base import RuntimeOption, StoreOption, err, existing_store, out, say

if TYPE_CHECKING:
    from tasks.artifacts.admin import ArtifactSummary, Garbage

_MOST_DAYS = 36500
"""A century; so many that they lead to before the year 1 are an error."""

artifacts = typer.Typer(no_args_is_help=True, help="Look into an artifact store, and tidy it.")


@artifacts.command("ls")
def list_(
    store: StoreOption = None,
    runtime: RuntimeOption = None,
    stage: Annotated[Stage | None, typer.Option(help="Only artifacts of this stage.")] = None,
) -> None:
    """List artifacts, finished and unfinished."""
    from flows.console import print_table, size_text
    from tasks.artifacts.admin import list_artifacts, stored_bytes

    opened = existing_store(store, runtime)
    found = list_artifacts(opened, stage)
    sizes = stored_bytes(opened, [item.ref for item in found])
    rows = [
        {
            "artifact": str(item.ref),
            "state": _state(item),
            "shards": f"{item.num_done}/{item.num_shards}",
            "rows": item.num_rows or "",  # files have none
            "bytes": f"{num_bytes:,}",
            "created": item.created_at.strftime("%Y-%m-%d %H:%M"),
        }
        for item, num_bytes in zip(found, sizes, strict=True)
    ]
    print_table(out, "Artifacts", rows)
    for item in found:
        if item.problem:
            say(f"damaged: {item.problem}", err, style="red")
    if not rows:
        say(f"no artifacts in {opened.root}")
        return
    say(
        f"together: {sum(sizes):,} bytes ({size_text(sum(sizes))}), images and resume points "
        "included"
    )


@artifacts.command()
def show(
    artifact: Annotated[str, typer.Argument(help="stage/id, as `ls` prints it.")],
    store: StoreOption = None,
    runtime: RuntimeOption = None,
    rejected: Annotated[
        bool,
        typer.Option(
            "--rejected",
            help="Instead, one line of JSON for each row that cannot be used, with the reason.",
        ),
    ] = False,
) -> None:
    """Print everything known of one artifact, as JSON."""
    from tasks.artifacts.admin import describe, rejected_rows

    try:
        ref = ArtifactRef.parse(artifact)
    except ValueError:
        raise ConfigError(
            f"{artifact!r} names no artifact; `sdrpn artifacts ls` lists them as stage/id"
        ) from None
    opened = existing_store(store, runtime)
    if rejected:
        for row in rejected_rows(opened, ref):
            say(json.dumps(row))
        return
    facts = describe(opened, ref)
    if ref.stage is Stage.DOWNLOAD and facts["is_committed"]:
        from tasks.sources.same_files import with_same_files

        stand_in = with_same_files(opened, ref, only_looks=True)
        facts = {"ref": facts["ref"], "same_as": str(stand_in) if stand_in != ref else None} | facts
    out.print_json(json.dumps(facts))


@artifacts.command()
def gc(
    store: StoreOption = None,
    runtime: RuntimeOption = None,
    older_than_days: Annotated[
        float,
        typer.Option(
            min=0,
            max=_MOST_DAYS,
            help="Only what has not been written to for so many days; 0 takes all.",
        ),
    ] = 7.0,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete what is listed; without, nothing is touched.")
    ] = False,
) -> None:
    """List what could be deleted to free space; with --delete, delete it.

    That is: unfinished artifacts of runs that nobody went on with, and what finished ones no longer
    need (training checkpoints, partial files). Finished artifacts themselves always stay.
    """
    from flows.console import print_table
    from tasks.artifacts.admin import collect_garbage

    young: list[ArtifactRef] = []
    garbage = collect_garbage(
        existing_store(store, runtime),
        older_than=timedelta(days=older_than_days),
        dry_run=not delete,
        on_young=young.append,
    )
    rows = [
        {
            "artifact": str(item.ref),
            "what": item.reason,
            "files": len(item.keys),
            "bytes": f"{item.num_bytes:,}",
        }
        for item in garbage
    ]
    print_table(out, "Deleted" if delete else "Could be deleted", rows)
    verdict = _verdict(garbage, older_than_days, is_deleted=delete)
    say(verdict)
    if young:
        say(
            f"left alone, as written to within {older_than_days:g} days: what is unfinished or "
            f"left over of {young[0]}{f' and {len(young) - 1} more' if young[1:] else ''}; "
            "if no run is at work, include it with --older-than-days 0",
            err,
        )


def _verdict(garbage: "list[Garbage]", older_than_days: float, *, is_deleted: bool) -> str:
    """What was done, in one line."""
    if not garbage:
        age = f" that is older than {older_than_days:g} days" if older_than_days else ""
        return f"nothing to delete{age}"
    num_files = sum(len(item.keys) for item in garbage)
    total = (
        f"{counted(num_files, 'file')}, {counted(sum(item.num_bytes for item in garbage), 'byte')}"
    )
    if is_deleted:
        return f"deleted: {total}"
    return f"nothing was deleted; the same command with --delete frees {total}"


def _state(item: "ArtifactSummary") -> str:
    if item.problem:
        return "damaged"
    return "committed" if item.is_committed else "unfinished"
