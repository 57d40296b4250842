"""Which files sources consist of, before anybody is asked how large they are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_contracts.addresses import file_name
from data_contracts.errors import SdrpnError, root_cause
from data_contracts.runtime import RuntimeConfig
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
from sdrpn_core.threads import in_parallel
from tasks.artifacts.store import ArtifactStore
from tasks.fetching.addresses import downloads_folder, local_file, matching, must_be_fetched
from tasks.fetching.kept_files import earlier_copy
from tasks.fetching.transient import is_transient
from tasks.recipes import benchmark_recipe
from tasks.sources import conversions
from tasks.sources.archives import archive_kind
from tasks.sources.benchmark_files import find_benchmark
from tasks.sources.conversions import Conversion
from tasks.sources.local_sources import require_local
from tasks.storage.storage import Storage

_GZIPPED = (".tar.gz", ".tgz")


@dataclass(frozen=True)
class Rewriting:
    """Files that are kept a second time, in a form that can be read in ranges."""

    conversion: Conversion
    uris: tuple[str, ...]
    """Of the files that are rewritten together, in their order."""


@dataclass(frozen=True)
class WantedFile:
    """A file of a source that nobody has been asked about yet."""

    source: str
    file: RemoteFile
    must_come: bool
    """It is fetched rather than read in place."""
    rewriting: Rewriting | None = None
    is_copied: bool = False
    problem: str | None = None
    """Why the place that lists it could not be asked; the address is then that place's."""


def wanted_files(
    sources: Sequence[EvaluationSource],
    runtime: RuntimeConfig,
    *,
    force: bool = False,
    allow_silence: bool = False,
) -> list[WantedFile]:
    """Files of every source; one that several have is there several times.

    Args:
        sources: whose files; a mix's records come first.
        runtime: store and downloads folder.
        force: committed downloads are made anew.
        allow_silence: a place that cannot be listed now stands for its files, with a ``problem``.

    Raises:
        SdrpnError: if a file on this machine's disk does not exist, or a listing cannot be had.
    """
    store = ArtifactStore.of(runtime)
    folder = downloads_folder(runtime)

    def of_source(source: EvaluationSource) -> list[WantedFile]:
        try:
            return _files_of(source, store, folder, force=force)
        except SdrpnError as error:
            if not (allow_silence and is_transient(error)):
                raise
            return [
                WantedFile(source.name, remote_file(place), True, problem=root_cause(error))
                for place in _listed_at(source)
            ]

    return [item for found in in_parallel(of_source, sources) for item in found]


def merged(wanted: Iterable[WantedFile]) -> list[WantedFile]:
    """One for each address; what any source needs of it is needed."""
    found: dict[str, WantedFile] = {}
    for item in wanted:
        first = found.setdefault(item.file.uri, item)
        found[item.file.uri] = replace(
            first,
            must_come=first.must_come or item.must_come,
            rewriting=first.rewriting or item.rewriting,
            is_copied=first.is_copied or item.is_copied,
        )
    return list(found.values())


def _files_of(
    source: EvaluationSource, store: ArtifactStore, downloads: Path, *, force: bool
) -> list[WantedFile]:
    match source:
        case SceneSource():
            return []
        case LlavaMixSource() | VisualCotSource() | ParquetSource():
            require_local(source)
            return _published_files(source, store, downloads)
        case BenchmarkSource():
            found = find_benchmark(store, source)
            # A committed benchmark's files are not opened again.
            ref = benchmark_recipe(found.identity(source), source).ref
            is_wanted = force or not store.is_committed(ref)
            return [
                WantedFile(source.name, remote_file(uri), must_be_fetched(uri) and is_wanted)
                for uri in found.uris
            ]


def _published_files(source: FileSource, store: ArtifactStore, downloads: Path) -> list[WantedFile]:
    if isinstance(source, ParquetSource):
        given = [address for each in source.files for address in matching(store.storage, each)]
        files = [remote_file(address) for address in given]
        together = Rewriting(conversions.parquet(source), tuple(file.uri for file in files))
        return [WantedFile(source.name, file, True, together) for file in files]
    places = [p for p in source.image_places if isinstance(p, ImageArchive)]
    return [*_texts(source), *(_archive(source, place, downloads) for place in places)]


def _texts(source: LlavaMixSource | VisualCotSource) -> list[WantedFile]:
    records = remote_file(source.records)
    if isinstance(source, VisualCotSource):
        rewriting = Rewriting(conversions.visual_cot(source), (records.uri,))
        return [WantedFile(source.name, records, True, rewriting)]
    boxes = [] if source.boxes is None else [remote_file(source.boxes)]
    return [WantedFile(source.name, file, True) for file in (records, *boxes)]


def _archive(
    source: LlavaMixSource | VisualCotSource, place: ImageArchive, downloads: Path
) -> WantedFile:
    file = remote_file(place.file)
    is_gzipped = _is_gzipped(file, downloads)
    must_come = source.copy_images or is_gzipped or must_be_fetched(file.uri)
    rewriting = Rewriting(conversions.gunzip(), (file.uri,)) if is_gzipped else None
    return WantedFile(source.name, file, must_come, rewriting, source.copy_images)


def _is_gzipped(file: RemoteFile, downloads: Path) -> bool:
    """By content if the archive is on this machine's disk, else by its name."""
    path = local_file(file.uri)
    if path is None and (copy := earlier_copy(file, downloads)):
        path = copy.path
    if path is None:
        return file_name(file.uri).endswith(_GZIPPED)
    with Storage(str(path.parent)).reader(path.name) as archive:
        return archive_kind(archive, file.uri) == "tar.gz"


def _listed_at(source: EvaluationSource) -> tuple[FileAddress, ...]:
    """Addresses that stand for a source's files as long as nobody says which there are."""
    match source:
        case BenchmarkSource():
            return (source.files or f"hf://datasets/{TASKS[source.task].hub_ids[0]}",)
        case ParquetSource():
            return source.files
        case _:
            raise AssertionError(f"files of {source.type} are not listed anywhere")
