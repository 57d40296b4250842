"""The files that sources consist of, with what their servers say of them before anything is
fetched: size, digest, licence, and how much is still to come."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_contracts.errors import root_cause
from data_contracts.runtime import RuntimeConfig
from data_contracts.sources import EvaluationSource
from sdrpn_core.threads import in_parallel
from tasks.artifacts.store import ArtifactStore
from tasks.fetching.addresses import downloads_folder, local_file, opener, require_space
from tasks.fetching.fetcher import describe
from tasks.fetching.kept_files import earlier_copy, is_fetched, kept_file, missing_bytes
from tasks.fetching.remote import DownloadError, RemoteInfo
from tasks.fetching.transient import is_transient
from tasks.planning.rewriting import bytes_to_rewrite
from tasks.planning.wanted_files import WantedFile, merged, wanted_files


@dataclass(frozen=True)
class PlannedFile:
    """One file that a source consists of."""

    source: str
    """The first that has it."""
    uri: str
    num_bytes: int | None
    """None if its server does not say, or could not be asked."""
    sha256: str | None
    licence: str | None
    num_missing: int | None = None
    """Bytes still to be fetched; None of a file that is local, was fetched, or is read in place."""
    num_rewritten: int = 0
    """Bytes still to be kept a second time, in a form that can be read in ranges."""
    num_read: int = 0
    """Bytes that a run reads each time to tell whether the file is still the same."""
    is_copied: bool = False
    """Goes into the store as it is."""
    is_listed: bool = True
    """Not a pattern or folder that stands for files as long as nobody says which there are."""
    problem: str | None = None
    """Why its server could not be asked."""

    @property
    def is_here(self) -> bool:
        """Nothing of it is to be fetched."""
        return self.num_missing is None


def planned_files(
    sources: Sequence[EvaluationSource], runtime: RuntimeConfig, *, allow_silence: bool = False
) -> dict[str, tuple[PlannedFile, ...]]:
    """Every file by the name of its source; a file of two sources is asked about once.

    Args:
        sources: whose files; a mix's records come first.
        runtime: store, downloads folder, patience with servers.
        allow_silence: a file whose server does not answer has a ``problem``, not an error.

    Raises:
        SdrpnError: if a file does not exist, or its server does not answer and that is not allowed.
    """
    wanted = wanted_files(sources, runtime, allow_silence=allow_silence)
    known = _ask(wanted, runtime, allow_silence=allow_silence)
    here = {file.uri for file in known.values() if file.is_here}
    known = _with_rewriting(known, wanted, runtime, here)
    uris = {s.name: [item.file.uri for item in wanted if item.source == s.name] for s in sources}
    return {name: tuple(known[uri] for uri in dict.fromkeys(uris[name])) for name in uris}


def unique_files(by_source: Mapping[str, Iterable[PlannedFile]]) -> tuple[PlannedFile, ...]:
    """Files of all sources, those of several once."""
    return tuple({file.uri: file for files in by_source.values() for file in files}.values())


def waiting_files(
    sources: Sequence[EvaluationSource], runtime: RuntimeConfig, force: bool = False
) -> tuple[PlannedFile, ...]:
    """Files that a run is still to fetch; those that are read in place are not asked about.

    Args:
        sources: whose files.
        runtime: store, downloads folder, patience with servers.
        force: committed downloads are made anew.

    Raises:
        NoAnswer: if a server does not answer.
        SdrpnError: if a file does not exist, on this machine's disk or on its server.
    """
    wanted = wanted_files(sources, runtime, force=force)
    coming = {item.file.uri for item in wanted if item.must_come}
    asked = [item for item in wanted if item.file.uri in coming]
    known = _ask(asked, runtime, allow_silence=False)
    # Of files that are still to come nothing was rewritten, and no others count.
    known = _with_rewriting(known, asked, runtime, here=())
    return tuple(file for file in known.values() if not file.is_here)


def require_room(files: Iterable[PlannedFile], runtime: RuntimeConfig) -> None:
    """Check that files, and what is rewritten of them, fit on the disk that they are fetched to.

    Raises:
        DownloadError: if all of them together do not.
    """
    num_bytes = sum((file.num_missing or 0) + file.num_rewritten for file in files)
    if num_bytes:
        require_space(downloads_folder(runtime), num_bytes, runtime.downloads)


def _ask(
    wanted: Sequence[WantedFile], runtime: RuntimeConfig, *, allow_silence: bool
) -> dict[str, PlannedFile]:
    """What is known of files by address; all servers are asked side by side."""
    files = in_parallel(lambda item: _planned(item, runtime, allow_silence), merged(wanted))
    return {file.uri: file for file in files}


def _with_rewriting(
    known: Mapping[str, PlannedFile],
    wanted: Sequence[WantedFile],
    runtime: RuntimeConfig,
    here: Collection[str],
) -> dict[str, PlannedFile]:
    """The same, with what is still to be rewritten; of files ``here`` an earlier run may have."""
    sizes = {uri: file.num_bytes or 0 for uri, file in known.items()}
    left = bytes_to_rewrite(wanted, sizes, here, downloads_folder(runtime))
    return {uri: replace(file, num_rewritten=left[uri]) for uri, file in known.items()}


def _planned(item: WantedFile, runtime: RuntimeConfig, allow_silence: bool) -> PlannedFile:
    file, path = item.file, local_file(item.file.uri)
    if path is not None:
        size = path.stat().st_size if path.is_file() else None
        return _described(item, size, file.sha256)
    folder = downloads_folder(runtime)
    if kept := kept_file(file, folder):
        return _described(item, kept.num_bytes, kept.sha256)
    if item.problem is not None:
        return _unknown(item, folder, item.problem)
    store = ArtifactStore.of(runtime).storage
    try:
        info = describe(file, opener(store, runtime.downloads), runtime.downloads)
    except DownloadError as error:
        if copy := earlier_copy(file, folder):  # the run will go on with it
            return _described(item, copy.num_bytes, copy.sha256)
        if not (allow_silence and is_transient(error)):
            raise
        return _unknown(item, folder, root_cause(error))
    found = _described(item, info.num_bytes, file.sha256 or info.sha256, info.licence)
    if not item.must_come or is_fetched(file, folder, info):
        return found
    return replace(found, num_missing=missing_bytes(file, folder, info))


def _unknown(item: WantedFile, folder: Path, problem: str) -> PlannedFile:
    """As far as the configuration describes a file."""
    found = _described(item, item.file.num_bytes, item.file.sha256)
    if not item.must_come:
        return replace(found, problem=problem)
    info = RemoteInfo(item.file.num_bytes, "", takes_ranges=False)
    return replace(found, problem=problem, num_missing=missing_bytes(item.file, folder, info))


def _described(
    item: WantedFile, num_bytes: int | None, sha256: str | None, licence: str | None = None
) -> PlannedFile:
    size, file = num_bytes or 0, item.file
    # What was rewritten is read too, and about as large.
    is_digested = local_file(file.uri) is not None and (item.must_come or file.sha256 is not None)
    return PlannedFile(
        item.source,
        file.uri,
        num_bytes,
        sha256,
        file.licence or licence,
        num_read=size * (int(is_digested) + int(item.rewriting is not None)),
        is_copied=item.is_copied,
        is_listed=item.problem is None,
    )
