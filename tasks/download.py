"""Stage ``download``: bring a source's files within reach, with a digest of each.

The artifact is a table of files: ``records.json``, ``boxes.jsonl`` where the source has true boxes,
and every image that the records name as ``images/<path>``. Files are blobs of the artifact, except
images that stay where they are; either way the table has their digests, and says of every image
whether it can be decoded. Images that do not exist have no row; the next stage says so for each
question. Nothing is written under a path that the data chose, so no archive or record can write
outside the store.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from threading import Semaphore
from typing import Any

from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.settings_files import parse_lines
from data_contracts.sources import BenchmarkSource, EvaluationSource, SceneSource
from sdrpn_core.images import UnreadableImage, decode_image
from sdrpn_core.threads import in_parallel, num_cores
from tasks import recipes
from tasks.artifacts.row_ranges import image_range
from tasks.artifacts.stage import FrameShard, StageRun, run_stage
from tasks.artifacts.writer import ArtifactWriter
from tasks.shard_statistics import NUM_CHATS, NUM_RECORDS
from tasks.sources.access import Forbidden, Gone, read_source
from tasks.sources.benchmark_files import DOCUMENTS_NAME, find_benchmark, write_benchmark
from tasks.sources.downloaded_files import (
    IMAGES_FOLDER,
    file_table,
    kept_file_row,
    kept_row,
    row_in_place,
)
from tasks.sources.image_places import archive_addresses, keep_archive
from tasks.sources.mix_boxes import MixBox, MixBoxes
from tasks.sources.same_files import begin_note, with_same_files
from tasks.sources.scene_files import write_scenes
from tasks.sources.source_fetcher import Fetcher
from tasks.sources.survey import SurveyedSource, files_beside_images, survey
from tasks.storage.byte_ranges import MAX_MEMBER_BYTES, DamagedArchive
from tasks.storage.errors import TooLarge
from tasks.storage.scratch_folders import scratch_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Image:
    """Where one image is to be read."""

    uri: str
    stays: bool
    """Its address may stand in the table: it is not copied, or is in the store already."""


def download(run: StageRun, source: EvaluationSource) -> ArtifactRef:
    """Make the table of a source's files, or find one that has the same files.

    Raises:
        SourceError: if the records or the images cannot be read.
        DownloadError: if they cannot be fetched.
    """
    if isinstance(source, SceneSource):
        return _download_scenes(run, source)
    if isinstance(source, BenchmarkSource):
        return _download_benchmark(run, source)
    mix = survey(run, source)
    recipe = recipes.download_recipe(mix.identity, len(mix.names))
    return _fetch(run, recipe, lambda: mix)


def _download_scenes(run: StageRun, source: SceneSource) -> ArtifactRef:
    """Write the scenes out as a user's data would lie, and go on from there."""
    with scratch_folder() as folder:

        @cache
        def mix() -> SurveyedSource:
            written = write_scenes(folder, source)
            return survey(run, written.model_copy(update={"copy_images": True}))

        return _fetch(run, recipes.scenes_recipe(source), mix)


def _download_benchmark(run: StageRun, source: BenchmarkSource) -> ArtifactRef:
    """Write the benchmark's rows out as a user's data would lie, and go on from there."""
    found = find_benchmark(run.store, source)
    recipe = recipes.benchmark_recipe(found.identity(source), source)
    with scratch_folder() as folder:

        @cache
        def mix() -> SurveyedSource:
            fetcher = Fetcher(run)
            written = write_benchmark(folder, source, found, fetcher)
            rows = fetcher.get(str(folder / DOCUMENTS_NAME))
            return replace(survey(run, written), benchmark_rows=rows)

        return _fetch(run, recipe, mix)


def _fetch(run: StageRun, recipe: Recipe, get_mix: Callable[[], SurveyedSource]) -> ArtifactRef:
    @cache
    def opened() -> ArtifactWriter:
        return run.store.writer(recipe)

    @cache
    def located() -> dict[str, _Image]:
        return _locate(opened(), get_mix())

    @cache
    def boxes() -> MixBoxes:
        file = get_mix().local.boxes
        lines = [] if file is None else parse_lines(MixBox, file.path.read_bytes(), str(file.path))
        return MixBoxes(lines, {name: name for name in get_mix().names})

    def make_shard(index: int) -> FrameShard:
        mix, writer = get_mix(), opened()
        if index == 0:
            named = files_beside_images(mix.local, mix.benchmark_rows)
            rows = [kept_file_row(writer, *item) for item in named.items()]
            chats = {NUM_CHATS: mix.num_chats} if mix.num_chats else {}
            return FrameShard(file_table(rows), {NUM_RECORDS: mix.num_records, **chats})
        names = [mix.names[i] for i in image_range(len(mix.names), recipe, index)]
        images = located()
        there = [(name, images[name]) for name in names if name in images]
        cores = Semaphore(num_cores())  # more threads than these wait for disks and servers
        found = in_parallel(lambda item: _image_row(run, writer, cores, *item), there)
        sizes = {name: one.size for (name, _), one in zip(there, found, strict=True) if one}
        _warn_of_boxes_outside(boxes(), sizes)
        return FrameShard(file_table([one.row for one in found if one is not None]))

    if not (run.force or run.only_looks or run.store.is_committed(recipe.ref)):
        begin_note(run.store, recipe.ref)
    ref = run_stage(run, recipe, make_shard)
    return ref if run.force else with_same_files(run.store, ref, only_looks=run.only_looks)


def _locate(writer: ArtifactWriter, mix: SurveyedSource) -> dict[str, _Image]:
    """Where each image is; the first place that has it serves it."""
    found: dict[str, _Image] = {}
    for place, archive in mix.archives:
        uri = keep_archive(writer, archive) if mix.copies_images else archive.uri
        for name, address in archive_addresses(archive, place, mix.names, uri).items():
            found.setdefault(name, _Image(address, stays=True))
    for folder in mix.folders:
        for name in folder.found:
            found.setdefault(name, _Image(folder.uri(name), stays=not mix.copies_images))
    return found


def _warn_of_boxes_outside(boxes: MixBoxes, sizes: Mapping[str, tuple[int, int] | None]) -> None:
    """Say which true boxes show nothing of their image: evaluation, hours later, leaves them out.

    Args:
        boxes: of the source.
        sizes: (width, height) of images by path; None of those that cannot be decoded.
    """
    known = {path: size for path, size in sizes.items() if size is not None}
    if outside := boxes.outside(known):
        first = outside[0]
        width, height = known[str(first.path)]
        logger.warning(
            f"true boxes outside their images, which evaluation leaves out: {len(outside)}; the "
            f"first: {list(first.box)} of {first.image}, which has {width} x {height} pixels"
        )


@dataclass(frozen=True)
class _ImageRow:
    """An image's row of the table of files, and what else was seen as it was decoded."""

    row: dict[str, Any]
    size: tuple[int, int] | None = None
    """(width, height); None if it cannot be decoded."""


def _image_row(
    run: StageRun, writer: ArtifactWriter, cores: Semaphore, name: str, image: _Image
) -> _ImageRow | None:
    path = f"{IMAGES_FOLDER}{name}"
    try:
        data = read_source(image.uri, lambda: run.store.read_uri(image.uri, MAX_MEMBER_BYTES))
    except DamagedArchive as error:
        problem = f"the archive member {error}"
        return _ImageRow({**row_in_place(path, image.uri, b""), "problem": problem})
    except Gone:
        return None  # deleted since it was listed; its questions will say that it is missing
    except (Forbidden, TooLarge) as error:
        return _ImageRow({**row_in_place(path, image.uri, b""), "problem": str(error)})
    row = row_in_place(path, image.uri, data) if image.stays else kept_row(writer, path, data)
    with cores:  # a photograph of 8K takes 200 MB as it is decoded
        try:
            size = decode_image(data).size
        except UnreadableImage as error:
            return _ImageRow({**row, "problem": str(error)})
    return _ImageRow({**row, "problem": None}, size)
