"""The files that sources consist of, with what their servers say of them before anything is
fetched: size, digest, licence, and how much is still to come."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_contracts.configs import RuntimeConfig
from data_contracts.errors import SdrpnError
from data_contracts.sources import (
    BenchmarkSource,
    EvaluationSource,
    FileAddress,
    FileSource,
    ImageArchive,
    LlavaMixSource,
    ParquetSource,
    RemoteFile,
    SceneSource,
    VisualCotSource,
    remote_file,
)
from sdrpn_core.benchmarks.tasks import TASKS
from tasks.artifact_store import ArtifactStore
from tasks.benchmark_files import find_benchmark
from tasks.fetching.addresses import (
    downloads_folder,
    local_file,
    matching,
    must_be_fetched,
    opener,
    require_space,
)
from tasks.fetching.fetcher import describe
from tasks.fetching.kept_files import earlier_copy, is_fetched, kept_file, missing_bytes
from tasks.fetching.remote import DownloadError, RemoteInfo
from tasks.local_sources import require_local
from tasks.plan import benchmark_recipe
from tasks.source_parts import image_places
from tasks.storage import in_parallel
from tasks.transient import is_transient

_GZIPPED = (".tar.gz", ".tgz")


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
    is_rewritten: bool = False
    """Kept a second time, in a form that can be read in ranges."""
    is_copied: bool = False
    """Goes into the store as it is."""
    problem: str | None = None
    """Why its server could not be asked."""

    @property
    def is_here(self) -> bool:
        """Nothing of it is to be fetched."""
        return self.num_missing is None


@dataclass(frozen=True)
class _Wanted:
    """A file of a source that nobody has been asked about yet."""

    source: str
    file: RemoteFile
    must_come: bool
    """It is fetched rather than read in place."""
    is_rewritten: bool = False
    is_copied: bool = False
    problem: str | None = None
    """Why the place that lists it could not be asked; the address is then that place's."""


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
    wanted = _wanted(sources, runtime, force=False, allow_silence=allow_silence)
    known = _ask(_merged(wanted), runtime, allow_silence=allow_silence)
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
    wanted = _merged(_wanted(sources, runtime, force=force, allow_silence=False))
    known = _ask([item for item in wanted if item.must_come], runtime, allow_silence=False)
    return tuple(file for file in known.values() if not file.is_here)


def require_room(files: Iterable[PlannedFile], runtime: RuntimeConfig) -> None:
    """Check that files, and what is rewritten of them, fit on the disk that they are fetched to.

    Raises:
        DownloadError: if all of them together do not.
    """
    num_bytes = sum(
        (file.num_missing or 0) + (file.num_bytes or 0) * file.is_rewritten for file in files
    )
    if num_bytes:
        require_space(downloads_folder(runtime), num_bytes, runtime.downloads)


def _wanted(
    sources: Sequence[EvaluationSource],
    runtime: RuntimeConfig,
    *,
    force: bool,
    allow_silence: bool,
) -> list[_Wanted]:
    store = ArtifactStore(runtime.store, runtime.storage_options)

    def of_source(source: EvaluationSource) -> list[_Wanted]:
        try:
            return _files_of(source, store, force=force)
        except SdrpnError as error:
            if not (allow_silence and is_transient(error)):
                raise
            return [
                _Wanted(source.name, remote_file(place), True, problem=_root_cause(error))
                for place in _listed_at(source)
            ]

    return [item for found in in_parallel(of_source, sources) for item in found]


def _files_of(source: EvaluationSource, store: ArtifactStore, *, force: bool) -> list[_Wanted]:
    match source:
        case SceneSource():
            return []
        case LlavaMixSource() | VisualCotSource() | ParquetSource():
            require_local(source)
            return _published_files(source, store)
        case BenchmarkSource():
            found = find_benchmark(store, source)
            # A committed benchmark's files are not opened again.
            ref = benchmark_recipe(found.identity(source), source).ref
            is_wanted = force or not store.is_committed(ref)
            return [
                _Wanted(source.name, remote_file(uri), must_be_fetched(uri) and is_wanted)
                for uri in found.uris
            ]


def _published_files(source: FileSource, store: ArtifactStore) -> list[_Wanted]:
    match source:
        case ParquetSource():
            files = (file for given in source.files for file in matching(store.storage, given))
            return [
                _Wanted(source.name, remote_file(file), True, is_rewritten=True) for file in files
            ]
        case LlavaMixSource() | VisualCotSource():
            boxes = source.boxes if isinstance(source, LlavaMixSource) else None
            texts = [file for file in (source.records, boxes) if file is not None]
            places = [p for p in image_places(source.images) if isinstance(p, ImageArchive)]
            return [_Wanted(source.name, remote_file(file), True) for file in texts] + [
                _archive(source, place) for place in places
            ]


def _archive(source: LlavaMixSource | VisualCotSource, place: ImageArchive) -> _Wanted:
    file = remote_file(place.file)
    is_gzipped = file.uri.endswith(_GZIPPED)
    must_come = source.copy_images or is_gzipped or must_be_fetched(file.uri)
    return _Wanted(source.name, file, must_come, is_gzipped, source.copy_images)


def _listed_at(source: EvaluationSource) -> tuple[FileAddress, ...]:
    """Addresses that stand for a source's files as long as nobody says which there are."""
    match source:
        case BenchmarkSource():
            return (source.files or f"hf://datasets/{TASKS[source.task].hub_ids[0]}",)
        case ParquetSource():
            return source.files
        case _:
            raise AssertionError(f"files of {source.type} are not listed anywhere")


def _merged(wanted: Iterable[_Wanted]) -> list[_Wanted]:
    """One for each address; what any source needs of it is needed."""
    found: dict[str, _Wanted] = {}
    for item in wanted:
        first = found.setdefault(item.file.uri, item)
        found[item.file.uri] = replace(
            first,
            must_come=first.must_come or item.must_come,
            is_rewritten=first.is_rewritten or item.is_rewritten,
            is_copied=first.is_copied or item.is_copied,
        )
    return list(found.values())


def _ask(
    wanted: Iterable[_Wanted], runtime: RuntimeConfig, *, allow_silence: bool
) -> dict[str, PlannedFile]:
    """What is known of files by address; all servers are asked side by side."""
    files = in_parallel(lambda item: _planned(item, runtime, allow_silence), wanted)
    return {file.uri: file for file in files}


def _planned(item: _Wanted, runtime: RuntimeConfig, allow_silence: bool) -> PlannedFile:
    file, path = item.file, local_file(item.file.uri)
    if path is not None:
        size = path.stat().st_size if path.is_file() else None
        return _described(item, size, file.sha256)
    folder = downloads_folder(runtime)
    if kept := kept_file(file, folder):
        return _described(item, kept.num_bytes, kept.sha256)
    if item.problem is not None:
        return _unknown(item, folder, item.problem)
    store = ArtifactStore(runtime.store, runtime.storage_options).storage
    try:
        info = describe(file, opener(store, runtime.downloads), runtime.downloads)
    except DownloadError as error:
        if copy := earlier_copy(file, folder):  # the run will go on with it
            return _described(item, copy.num_bytes, copy.sha256)
        if not (allow_silence and is_transient(error)):
            raise
        return _unknown(item, folder, _root_cause(error))
    found = _described(item, info.num_bytes, file.sha256 or info.sha256, info.licence)
    if not item.must_come or is_fetched(file, folder, info):
        return found
    return replace(found, num_missing=missing_bytes(file, folder, info))


def _unknown(item: _Wanted, folder: Path, problem: str) -> PlannedFile:
    """As far as the configuration describes a file."""
    found = _described(item, item.file.num_bytes, item.file.sha256)
    if not item.must_come:
        return replace(found, problem=problem)
    info = RemoteInfo(item.file.num_bytes, "", takes_ranges=False)
    return replace(found, problem=problem, num_missing=missing_bytes(item.file, folder, info))


def _described(
    item: _Wanted, num_bytes: int | None, sha256: str | None, licence: str | None = None
) -> PlannedFile:
    return PlannedFile(
        item.source,
        item.file.uri,
        num_bytes,
        sha256,
        item.file.licence or licence,
        is_rewritten=item.is_rewritten,
        is_copied=item.is_copied,
    )


def _root_cause(error: BaseException) -> str:
    """What is at the bottom of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
