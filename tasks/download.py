"""Stage ``download``: bring a source's files within reach, with a digest of each.

The artifact is a table of files: ``records.json``, ``boxes.jsonl`` where the source has true boxes,
and every image that the records name as ``images/<path>``. Files are blobs of the artifact, except
images that stay where they are; either way the table has their digests, and says of every image
whether it can be decoded. Images that do not exist have no row; the next stage says so for each
question. Nothing is written under a path that the data chose, so no archive or record can write
outside the store.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.errors import SdrpnError
from data_contracts.sources import (
    BenchmarkSource,
    EvaluationSource,
    FileSource,
    ImageArchive,
    ImageFolder,
    LlavaMixSource,
    SceneSource,
    Selection,
)
from sdrpn_core.images import UnreadableImage, decode_image
from sdrpn_core.records import image_path
from tasks import plan
from tasks.artifact_writer import ArtifactWriter
from tasks.benchmark_files import DOCUMENTS_NAME, find_benchmark, write_benchmark
from tasks.byte_ranges import DamagedArchive
from tasks.fetching.addresses import local_file
from tasks.fetching.kept_files import FetchedFile
from tasks.image_places import (
    Archive,
    Folder,
    archive_addresses,
    keep_archive,
    open_archive,
    served_elsewhere,
)
from tasks.record_stream import SourceError, read_records
from tasks.scratch_folders import scratch_folder
from tasks.source_parts import Documents, Fetcher, documents
from tasks.stage import FrameShard, StageRun, run_stage
from tasks.storage import Storage
from tasks.waiting_threads import in_parallel

T = TypeVar("T")

RECORDS_NAME = "records.json"
BOXES_NAME = "boxes.jsonl"
IMAGES_FOLDER = "images/"


@dataclass(frozen=True)
class _Mix:
    """A source, looked over but not yet copied."""

    documents: Documents
    num_records: int
    names: tuple[str, ...]
    """Images that the records name, sorted."""
    folders: tuple[Folder, ...]
    archives: tuple[tuple[ImageArchive, Archive], ...]
    copies_images: bool
    identity: dict[str, Any]
    benchmark_rows: FetchedFile | None = None
    """What a public benchmark's rows say beside their questions."""


@dataclass(frozen=True)
class _Image:
    """Where one image is to be read."""

    uri: str
    stays: bool
    """Its address may stand in the table: it is not copied, or is in the store already."""


def download(run: StageRun, source: EvaluationSource) -> ArtifactRef:
    """Make the table of a source's files.

    Raises:
        SourceError: if the records or the images cannot be read.
        DownloadError: if they cannot be fetched.
    """
    if isinstance(source, SceneSource):
        return _download_scenes(run, source)
    if isinstance(source, BenchmarkSource):
        return _download_benchmark(run, source)
    mix = _look_over(run, source)
    recipe = plan.download_recipe(mix.identity, len(mix.names))
    return _fetch(run, recipe, lambda: mix)


def _download_scenes(run: StageRun, source: SceneSource) -> ArtifactRef:
    """Write the scenes out as a user's data would lie, and go on from there."""
    with scratch_folder() as folder:

        @cache
        def mix() -> _Mix:
            written = write_scenes(folder, source)
            return _look_over(run, written.model_copy(update={"copy_images": True}))

        return _fetch(run, plan.scenes_recipe(source), mix)


def _download_benchmark(run: StageRun, source: BenchmarkSource) -> ArtifactRef:
    """Write the benchmark's rows out as a user's data would lie, and go on from there."""
    found = find_benchmark(run.store, source)
    recipe = plan.benchmark_recipe(found.identity(source), source)
    with scratch_folder() as folder:

        @cache
        def mix() -> _Mix:
            fetcher = Fetcher(run)
            written = write_benchmark(folder, source, found, fetcher)
            rows = fetcher.get(str(folder / DOCUMENTS_NAME))
            return replace(_look_over(run, written), benchmark_rows=rows)

        return _fetch(run, recipe, mix)


def write_scenes(folder: Path, source: SceneSource) -> LlavaMixSource:
    """Write a source's scenes as a LLaVA mix; returns the mix."""
    from sdrpn_core.reference.mix import write_mix

    written = write_mix(
        folder,
        num_images=source.num_images,
        seed=source.seed,
        split=source.split,
        print_scale=source.print_scale,
    )
    return LlavaMixSource(
        name=source.name,
        records=str(written.json_path),
        images=str(written.image_root),
        boxes=str(written.boxes_path),
    )


def _look_over(run: StageRun, source: FileSource) -> _Mix:
    """Read the records and find out which version of which images there is."""
    fetcher = Fetcher(run)
    parts = documents(fetcher, source)
    num_records, names = _named_images(parts.records, source.selection)
    store = run.store.storage
    folders: list[Folder] = []
    archives: list[tuple[ImageArchive, Archive]] = []
    for place in parts.places:
        if isinstance(place, ImageFolder):
            folders.append(_read(place.uri, lambda p=place: Folder.look(store, p, names)))  # type: ignore[misc]
        else:
            archives.append((place, open_archive(fetcher, store, place, source.copy_images)))
    if names and not archives and not any(folder.found for folder in folders):
        raise SourceError(
            f"{served_elsewhere(parts.places)}: holds none of the {len(names)} images that "
            f"{parts.records.path} names (the first is {names[0]!r}); point `images` at the folder "
            "that these paths start from"
        )
    chosen = source.selection.folders
    return _Mix(
        documents=parts,
        num_records=num_records,
        names=names,
        folders=tuple(folders),
        archives=tuple(archives),
        copies_images=source.copy_images,
        identity={
            "documents": {name: file.sha256 for name, file in _documents(parts, None).items()},
            "folders": None if chosen is None else list(chosen),
            "images": [_digest(folder.identity) for folder in folders],
            "archives": [[place.folder, *archive.identity] for place, archive in archives],
            # Rows name images that stay in place, so where they are is part of the content.
            "in_place": None if source.copy_images else _addresses(folders, archives),
        },
    )


def _documents(parts: Documents, benchmark_rows: FetchedFile | None) -> dict[str, FetchedFile]:
    named = {
        RECORDS_NAME: parts.records,
        BOXES_NAME: parts.boxes,
        DOCUMENTS_NAME: benchmark_rows,
    }
    return {name: file for name, file in named.items() if file is not None}


def _addresses(folders: list[Folder], archives: list[tuple[ImageArchive, Archive]]) -> list[str]:
    roots = [folder.storage.root.rstrip("/") for folder in folders]
    return roots + [archive.uri for _, archive in archives]


def _named_images(records: FetchedFile, selection: Selection) -> tuple[int, tuple[str, ...]]:
    """Number of records, and the images that those of the chosen folders name."""
    num_records = 0
    names: set[str] = set()
    with Storage(str(records.path.parent)).reader(records.path.name) as file:
        for record in read_records(file, str(records.path)):
            num_records += 1
            path = image_path(record)
            if path is not None and _is_chosen(path, selection):
                names.add(path)
    return num_records, tuple(sorted(names))


def _is_chosen(path: str, selection: Selection) -> bool:
    return selection.folders is None or path.partition("/")[0] in selection.folders


def _fetch(run: StageRun, recipe: Recipe, get_mix: Callable[[], _Mix]) -> ArtifactRef:
    @cache
    def located() -> dict[str, _Image]:
        return _locate(run.store.writer(recipe), get_mix())

    def make_shard(index: int) -> FrameShard:
        mix = get_mix()
        writer = run.store.writer(recipe)
        if index == 0:
            named = _documents(mix.documents, mix.benchmark_rows)
            rows = [_keep_file(writer, *item) for item in named.items()]
            return FrameShard(_table(rows), {plan.NUM_RECORDS: mix.num_records})
        names = [mix.names[i] for i in plan.image_range(len(mix.names), recipe, index)]
        images = located()
        there = [(name, images[name]) for name in names if name in images]
        found = in_parallel(lambda item: _image_row(run, writer, *item), there)
        return FrameShard(_table([row for row in found if row is not None]))

    return run_stage(run, recipe, make_shard)


def _locate(writer: ArtifactWriter, mix: _Mix) -> dict[str, _Image]:
    """Where each image is; the first place that has it serves it."""
    found: dict[str, _Image] = {}
    for place, archive in mix.archives:
        uri = keep_archive(writer, archive) if mix.copies_images else archive.uri
        for name, address in archive_addresses(archive, place, mix.names, uri).items():
            found.setdefault(name, _Image(address, stays=True))
    for folder in mix.folders:
        for name in folder.found:
            found.setdefault(name, _Image(folder.storage.uri(name), stays=not mix.copies_images))
    return found


def _image_row(
    run: StageRun, writer: ArtifactWriter, name: str, image: _Image
) -> dict[str, Any] | None:
    path = f"{IMAGES_FOLDER}{name}"
    try:
        data = _read(image.uri, lambda: run.store.read_uri(image.uri))
    except DamagedArchive as error:
        return {**_row(path, image.uri, b""), "problem": f"the archive member {error}"}
    except _Gone:
        return None  # deleted since it was listed; its questions will say that it is missing
    except _Forbidden as error:
        return {**_row(path, image.uri, b""), "problem": str(error)}
    row = _row(path, image.uri, data) if image.stays else _keep(writer, path, data)
    return {**row, "problem": _problem(data)}


def _problem(data: bytes) -> str | None:
    try:
        decode_image(data)
    except UnreadableImage as error:
        return str(error)
    return None


def _keep(writer: ArtifactWriter, path: str, data: bytes) -> dict[str, Any]:
    return _row(path, writer.put_blob(data, _suffix(path)), data)


def _keep_file(writer: ArtifactWriter, name: str, file: FetchedFile) -> dict[str, Any]:
    uri = writer.put_blob_file(file.path, file.sha256, _suffix(name), may_link=False)
    return {"path": name, "uri": uri, "num_bytes": file.num_bytes, "sha256": file.sha256}


def _suffix(path: str) -> str:
    suffix = Path(path).suffix.lower()
    is_plain = suffix[1:].isalnum() and suffix.isascii() and len(suffix) <= 6
    return suffix if is_plain else ""


def _row(path: str, uri: str, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    return {"path": path, "uri": uri, "num_bytes": len(data), "sha256": digest}


def _table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    types = {"path": pl.String, "uri": pl.String, "num_bytes": pl.Int64, "sha256": pl.String}
    return pl.DataFrame(rows, schema=types | {"problem": pl.String})


class _Gone(SourceError):
    """There is nothing at an address."""


class _Forbidden(SourceError):
    """A file on this machine's disk may not be read."""


def _read(uri: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise _Gone(f"{uri}: no such file; check the source's URI") from error
    except SdrpnError:
        raise
    except PermissionError as error:
        if local_file(uri) is None:  # credentials are wrong or have run out: for all images alike
            raise SourceError(f"{uri}: may not be read ({error}); check credentials") from error
        raise _Forbidden(f"may not be read; give it read permission (chmod +r {uri})") from error
    except Exception as error:  # each driver has errors of its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise SourceError(
            f"{uri}: cannot be read ({reason}); check the URI, the credentials and storage_options"
        ) from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
