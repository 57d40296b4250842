"""``sdrpn doctor``: is this machine ready, and if not, what to do."""

from dataclasses import asdict

import typer

from flows.cli_base import (
    JsonOption,
    RuntimeOption,
    StoreOption,
    err,
    loading,
    out,
    runtime_settings,
    say,
)
from flows.console import print_table
from flows.output_files import write_json


def doctor(
    store: StoreOption = None, runtime: RuntimeOption = None, json_file: JsonOption = None
) -> None:
    """Check Python, packages, GPU, memory, disk, store and hub; say what to fix.

    Ends with 0 if runs can work (there may be warnings), 1 if none can.
    """
    with loading():
        from tasks.environment_checks import check_environment
    with err.status("checking"):
        checks = check_environment(runtime_settings(runtime, store=store))
    print_table(
        out,
        "Environment",
        [{"check": check.name, "state": check.state, "found": check.found} for check in checks],
    )
    for check in checks:
        if check.remedy:
            say(f"{check.state}: {check.name}: {check.remedy}")
    if json_file is not None:
        write_json(json_file, [asdict(check) for check in checks])
    if any(check.state == "error" for check in checks):
        raise typer.Exit(1)
