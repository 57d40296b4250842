"""What a run is still to fetch: asked, shown and checked before its first download starts."""

from collections.abc import Callable, Sequence
from typing import Any

from data_contracts.addresses import concealed
from data_contracts.enums import Stage
from data_contracts.sources import EvaluationSource
from flows.console import size_text
from flows.execution import Execution
from tasks.planning.files import PlannedFile, require_room, waiting_files

OnDownloads = Callable[[Sequence[PlannedFile]], None]
"""Shown the files that are about to be fetched."""


def announce_downloads(
    sources: Sequence[EvaluationSource], execution: Execution, on_downloads: OnDownloads
) -> bool:
    """Show what is still to be fetched, if anything is, and check that all of it fits.

    Returns:
        Whether anything is.

    Raises:
        NoAnswer: if a server does not answer.
        DownloadError: if all files together do not fit on the disk.
    """
    if not sources:
        return False
    force = execution.is_forced(Stage.DOWNLOAD)
    waiting = execution.ask(
        Stage.DOWNLOAD, "plan", waiting_files, sources, execution.runtime, force
    )
    if waiting:
        on_downloads(waiting)
        require_room(waiting, execution.runtime)
    return bool(waiting)


def file_row(file: PlannedFile, *, whole_digest: bool = False) -> dict[str, Any]:
    """A file as a row of a table; ``unknown`` is what its server was not there to say."""
    is_asked = file.problem is None
    size = "unknown" if file.num_bytes is None else size_text(file.num_bytes)
    digest = file.sha256 or ("none published" if is_asked else "unknown")
    if file.sha256 is not None and not whole_digest:
        digest = f"{digest[:12]}..."
    here = "here" if is_asked else "read in place"
    return {
        "source": file.source,
        "file": concealed(file.uri),
        "size": size,
        "SHA-256": digest,
        "licence": file.licence or ("not stated" if is_asked else "unknown"),
        "state": here if file.is_here else "to fetch",
    }
