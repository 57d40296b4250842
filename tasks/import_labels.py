"""Label pickles of the SD-RPN authors become attention artifacts that ``make-labels`` goes on from.

Rows that cannot be used go to a second artifact, ``import_reject.v1``, each with its reason.
"""

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.enums import ExtractionStatus, Stage
from data_contracts.errors import SdrpnError, one_line
from data_contracts.interop import PublishedLabels
from data_contracts.registry import SchemaId, frame_of
from data_contracts.sources import ImageFolder
from sdrpn_core.interop.plain_pickle import load_plain
from sdrpn_core.interop.published_labels import BadRow, PublishedRow, attention_row, read_row
from sdrpn_core.threads import in_parallel
from tasks import recipes
from tasks.artifacts.row_ranges import shard_range
from tasks.artifacts.stage import FrameShard, StageRun, begin_stage, finish_stage, run_shard
from tasks.artifacts.store import ArtifactStore
from tasks.shard_statistics import status_statistic
from tasks.sources.image_places import Folder
from tasks.storage.addresses import absolute_uri, kept_address
from tasks.storage.digests import digest

NUM_REJECTED = "num_rejected"


class ImportFailed(SdrpnError):
    """Published files cannot be imported; the message says what to change."""


@dataclass(frozen=True)
class _Entry:
    """A row of a pickle: read, or why it cannot be used."""

    file: str
    position: int
    source_id: str
    row: PublishedRow | None
    reason: str = ""


@dataclass(frozen=True)
class _Import:
    """Everything that is to be imported, images not yet read."""

    settings: PublishedLabels
    entries: list[_Entry]
    images: Folder
    attention: Recipe
    rejects: Recipe


def import_labels(run: StageRun, settings: PublishedLabels) -> ArtifactRef:
    """Import label pickles; returns the attention artifact.

    Raises:
        ImportFailed: if a file or the images folder cannot be read, or no row can be used.
        UnreadablePickle: if a file is not a whole pickle of plain data.
    """
    work = _look_over(run.store, settings)
    missing = begin_stage(run, work.attention)
    # Told to nobody: progress counts the attention's shards.
    missing_rejects = begin_stage(StageRun(run.store, run.runtime, run.force), work.rejects)
    wanted = sorted({*(missing or ()), *(missing_rejects or ())})
    for num_made, index in enumerate(wanted, 1):
        attention, rejects = _shards(work, index)
        _keep(run, work.attention, index, attention)
        _keep(run, work.rejects, index, rejects)
        num_done = work.attention.num_shards - len(wanted) + num_made
        run.on_progress(Stage.EXTRACT_ATTENTION.value, num_done, work.attention.num_shards)
    # The attention is what later stages read: once it is committed, so are its rejects.
    if missing_rejects is not None:
        finish_stage(run, work.rejects)
    if missing is not None:
        finish_stage(run, work.attention)
    return work.attention.ref


@dataclass(frozen=True)
class ImportSummary:
    """What came of an import."""

    attention: ArtifactRef
    rejects: ArtifactRef
    num_imported: int
    num_rejected: int
    reasons: dict[str, int]
    """Kind of problem -> rows, the most frequent first; names and numbers are cut out."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        refs = {"attention": str(self.attention), "rejects": str(self.rejects)}
        counts = {"num_imported": self.num_imported, "num_rejected": self.num_rejected}
        return {**refs, **counts, "reasons": self.reasons}


def import_summary(store: ArtifactStore, attention: ArtifactRef) -> ImportSummary:
    """Rows imported and rejected."""
    manifest = store.manifest(attention)
    rejects = recipes.import_rejects_recipe(manifest.recipe).ref
    reasons = Counter(_kind(reason) for reason in store.read_frame(rejects)["reason"])
    return ImportSummary(
        attention=attention,
        rejects=rejects,
        num_imported=manifest.num_rows,
        num_rejected=reasons.total(),
        reasons=dict(reasons.most_common()),
    )


def _kind(reason: str) -> str:
    """The reason without what differs from row to row."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'", "...", reason))


def _keep(run: StageRun, recipe: Recipe, index: int, shard: FrameShard) -> None:
    run_shard(run, recipe, index, lambda _: shard)


def _look_over(store: ArtifactStore, settings: PublishedLabels) -> _Import:
    names = [Path(uri).name for uri in settings.files]
    if len(set(names)) < len(names):
        raise ImportFailed("two of the files have the same name: rename one, or import it apart")
    digests: dict[str, str] = {}
    entries: list[_Entry] = []
    for name, uri in zip(names, settings.files, strict=True):
        data = _read_file(store, uri)
        digests[name] = digest(data)
        entries += _entries(load_plain(data, uri), uri, settings)
    _mark_repeated(entries)
    named = {entry.row.image for entry in entries if entry.row is not None}
    images = Folder.look(store.storage, ImageFolder(uri=settings.images), named)
    _mark_missing(entries, images.found)
    if all(entry.row is None for entry in entries):
        raise ImportFailed(_nothing_usable(settings, entries))
    attention = recipes.imported_attention_recipe(
        settings,
        digests,
        images_digest=digest(images.identity.encode()),
        images_uri=kept_address(images.storage.root.rstrip("/")),
        num_rows=len(entries),
    )
    return _Import(settings, entries, images, attention, recipes.import_rejects_recipe(attention))


def _read_file(store: ArtifactStore, uri: str) -> bytes:
    try:
        return store.read_uri(absolute_uri(uri))
    except IsADirectoryError:
        raise ImportFailed(f"{uri}: is a folder; give the paths of its label pickles") from None
    except FileNotFoundError:
        raise ImportFailed(f"{uri}: no such file; give the path of a label pickle") from None
    except OSError as error:
        raise ImportFailed(f"{uri}: cannot be read ({one_line(error)}); check the URI") from error


def _entries(content: object, uri: str, settings: PublishedLabels) -> list[_Entry]:
    if not isinstance(content, list):
        raise ImportFailed(
            f"{uri}: holds a {type(content).__name__}, not a list of rows; "
            "give a label pickle of the SD-RPN authors"
        )
    return [_entry(row, Path(uri).name, i, settings) for i, row in enumerate(content)]


def _entry(row: object, file: str, position: int, settings: PublishedLabels) -> _Entry:
    given = row.get("question_id", "") if isinstance(row, dict) else ""
    source_id = str(given).encode("utf-8", "replace").decode()
    try:
        return _Entry(file, position, source_id, read_row(row, settings))
    except BadRow as problem:
        return _Entry(file, position, source_id, None, str(problem))


def _mark_repeated(entries: list[_Entry]) -> None:
    """Of a question that occurs again, only the first row is imported."""
    first: dict[str, _Entry] = {}
    for index, entry in enumerate(entries):
        if entry.row is None:
            continue
        earlier = first.setdefault(entry.row.question_id, entry)
        if earlier is not entry:
            reason = f"the same question as row {earlier.position} of {earlier.file}"
            entries[index] = replace(entry, row=None, reason=reason)


def _mark_missing(entries: list[_Entry], found: Collection[str]) -> None:
    for index, entry in enumerate(entries):
        if entry.row is not None and entry.row.image not in found:
            reason = f"no image {entry.row.image!r} in the images folder"
            entries[index] = replace(entry, row=None, reason=reason)


def _nothing_usable(settings: PublishedLabels, entries: list[_Entry]) -> str:
    files = ", ".join(settings.files)
    if not entries:
        return f"{files}: no rows; give a label pickle of the SD-RPN authors"
    reason, count = Counter(entry.reason for entry in entries).most_common(1)[0]
    return (
        f"{files}: none of {len(entries)} rows can be used ({count} x: {reason}); "
        f"check the file and --images {settings.images}"
    )


def _shards(work: _Import, index: int) -> tuple[FrameShard, FrameShard]:
    """One shard of each artifact."""
    share = shard_range(len(work.entries), work.attention.num_shards, index)
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    chosen = [work.entries[position] for position in share]
    for entry, made in zip(chosen, in_parallel(lambda e: _convert(work, e), chosen), strict=True):
        if isinstance(made, str):
            rejects.append(
                {
                    "file": entry.file,
                    "row": entry.position,
                    "source_id": entry.source_id,
                    "reason": made,
                }
            )
        else:
            rows.append(made)
    counts = {
        status_statistic(ExtractionStatus.OK.value): len(rows),
        NUM_REJECTED: len(rejects),
    }
    return (
        FrameShard(frame_of(rows, SchemaId.ATTENTION_MAP), counts),
        FrameShard(frame_of(rejects, SchemaId.IMPORT_REJECT)),
    )


def _convert(work: _Import, entry: _Entry) -> dict[str, Any] | str:
    """The attention row, or why there is none."""
    if entry.row is None:
        return entry.reason
    try:
        data = work.images.read(entry.row.image)
    except FileNotFoundError:
        return f"no image {entry.row.image!r} in the images folder"
    try:
        return attention_row(entry.row, work.settings, work.images.uri(entry.row.image), data)
    except BadRow as problem:
        return str(problem)
