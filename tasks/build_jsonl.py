"""Stage ``build-jsonl``: a source's records become questions with stable ids (``qa_record.v1``).

Records are streamed, their images are looked up in a database on disk, and rows go through buckets
on disk: memory does not grow with the source.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from itertools import islice
from pathlib import Path

import polars as pl

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import RecordsConfig
from data_contracts.enums import RecordStatus
from data_contracts.errors import SdrpnError
from data_contracts.sources import BenchmarkSource, EvaluationSource
from data_contracts.wording import counted
from sdrpn_core.records import LATER_TURN, build_records, image_path, skipped
from tasks import recipes
from tasks.artifacts.row_ranges import shard_range
from tasks.artifacts.stage import FrameShard, StageRun, run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.shard_statistics import NUM_OVER_SUBSET, status_statistic
from tasks.sources.downloaded_files import RECORDS_NAME
from tasks.sources.files import open_source_file
from tasks.sources.images import SourceImages, source_images
from tasks.sources.record_buckets import RecordBuckets, buckets_for
from tasks.sources.record_stream import read_mix
from tasks.storage.scratch_folders import scratch_folder

logger = logging.getLogger(__name__)

_RECORDS_AT_ONCE = 1024
_FAILURES = (
    RecordStatus.MALFORMED,
    RecordStatus.NO_QUESTION,
    RecordStatus.MISSING_IMAGE,
    RecordStatus.UNREADABLE_IMAGE,
)


class NoUsableRecords(SdrpnError):
    """Not one record of a source can be asked; the message says why."""


class TooManyRejects(SdrpnError):
    """More of a source's records are unusable than the settings allow; the message says why."""


def build_jsonl(
    run: StageRun, files: ArtifactRef, source: EvaluationSource, settings: RecordsConfig
) -> ArtifactRef:
    """Make the questions of one downloaded source.

    Raises:
        NoUsableRecords: if nothing in it can be asked.
        TooManyRejects: if more of it cannot be asked than the settings allow; of a public
            benchmark, if anything cannot.
    """
    recipe = recipes.records_recipe(
        run.store.manifest(files), source.name, source.selection, settings
    )
    with scratch_folder() as folder:

        @cache
        def built() -> tuple[RecordBuckets, int, Counter[str]]:
            return _build(run.store, files, recipe.ref, source, settings, folder)

        def make_shard(index: int) -> FrameShard:
            rows, num_rows, skips = built()
            frame = rows.frame(shard_range(num_rows, recipe.num_shards, index))
            found = frame["status"].value_counts().iter_rows()
            counts = Counter({status_statistic(status): count for status, count in found})
            if index == 0:
                counts.update({f"skipped.{why}": count for why, count in skips.items()})
                if settings.max_records is not None:
                    num_usable = rows.counts[RecordStatus.OK.value]
                    counts[NUM_OVER_SUBSET] = max(0, num_usable - settings.max_records)
            return FrameShard(frame, counts)

        ref = run_stage(run, recipe, make_shard)
        if not built.cache_info().currsize:  # made before, perhaps under wider limits
            _recheck(run.store, ref, source, settings)
        return ref


def _build(
    store: ArtifactStore,
    files: ArtifactRef,
    ref: ArtifactRef,
    source: EvaluationSource,
    settings: RecordsConfig,
    folder: Path,
) -> tuple[RecordBuckets, int, Counter[str]]:
    documents = store.read_shard_frame(store.manifest(files), 0)
    (mix,) = documents.filter(pl.col("path") == RECORDS_NAME).iter_rows(named=True)
    rows = RecordBuckets(folder / "rows", buckets_for(mix["num_bytes"]))
    with (
        source_images(store, files) as images,
        open_source_file(store, mix["uri"], mix["sha256"], folder) as file,
    ):
        skips = _add_records(rows, read_mix(file, mix["uri"]), images, source, settings)
    if num_later := skips[LATER_TURN]:
        logger.warning(
            f"source {source.name!r}: {counted(num_later, 'question')} of later turns left "
            "unasked; `records: {turns: all}` asks them too"
        )
    num_rows = rows.settle(settings.max_records, keep_repeats=source.selection.repeats)
    _require_any(rows, skips, source)
    _require_usable(ref, rows.counts, lambda one: rows.examples[one.value], source, settings)
    return rows, num_rows, skips


def _add_records(
    rows: RecordBuckets,
    records: Iterator[object],
    images: SourceImages,
    source: EvaluationSource,
    settings: RecordsConfig,
) -> Counter[str]:
    """Add the rows of every record that is wanted; returns what is left out, by reason."""
    skips: Counter[str] = Counter()
    while batch := list(islice(records, _RECORDS_AT_ONCE)):
        found = images.files({path for record in batch if (path := image_path(record))})
        wanted = []
        for record in batch:
            why = skipped(record, source.selection, found)
            if why is None:
                wanted.append(record)
            else:
                skips[why] += 1
        rows.add(build_records(wanted, source.name, settings, found, skips))
    return +skips


def _recheck(
    store: ArtifactStore, ref: ArtifactRef, source: EvaluationSource, settings: RecordsConfig
) -> None:
    """Apply the limits to questions that are committed: limits are not part of their identity."""
    statistics = store.manifest(ref).statistics
    if settings.max_records is not None and NUM_OVER_SUBSET not in statistics:
        return  # made by a release that did not count them
    counts = {one.value: int(statistics.get(status_statistic(one), 0)) for one in RecordStatus}
    counts[RecordStatus.OK.value] += int(statistics.get(NUM_OVER_SUBSET, 0))
    _require_usable(ref, counts, partial(_committed_reason, store, ref), source, settings)


def _committed_reason(store: ArtifactStore, ref: ArtifactRef, status: RecordStatus) -> str:
    """The first reason of a status; no rows after it are read."""
    frames = store.frames(ref, ["status", "reason"])
    found = (frame.filter(pl.col("status") == status.value) for frame in frames)
    return next(str(rows["reason"][0]) for rows in found if rows.height)


def _require_usable(
    ref: ArtifactRef,
    counts: Mapping[str, int],
    reason_of: Callable[[RecordStatus], str],
    source: EvaluationSource,
    settings: RecordsConfig,
) -> None:
    of = _by_status(counts)
    found = _histogram(of)
    num_failed = sum(of[status] for status in _FAILURES)
    num_asked = num_failed + of[RecordStatus.OK] + of[RecordStatus.DUPLICATE]
    if not num_failed:
        return
    problem = (
        f"source {source.name!r}: {num_failed:,} of {counted(num_asked, 'question')} cannot be "
        f"asked ({found}){_example(of, reason_of)}"
    )
    if isinstance(source, BenchmarkSource):
        raise TooManyRejects(
            f"{problem}; figures of the others alone could be compared with nobody's: mend the "
            "benchmark's files, or fetch them anew"
        )
    if num_failed > max(settings.tolerated_failures, settings.max_failure_rate * num_asked):
        raise TooManyRejects(
            f"{problem}; mend the source, choose `selection.folders`, or raise "
            "records.max_failure_rate to go on without them"
        )
    logger.warning(
        f"{problem}; each is a row with its reason: sdrpn artifacts show {ref} --rejected"
    )


def _require_any(rows: RecordBuckets, skips: Mapping[str, int], source: EvaluationSource) -> None:
    of = _by_status(rows.counts)
    if of[RecordStatus.OK]:
        return
    left_out = " and ".join(f"{skips[why]} {why}" for why in sorted(skips) if why != LATER_TURN)
    found, check = _histogram(of), "`records` and `images`"
    if left_out:
        found, check = f"{found}; left out by `selection`: {left_out}", f"`selection`, {check}"
    raise NoUsableRecords(
        f"source {source.name!r}: not one of its records can be asked "
        f"({found}){_example(of, lambda one: rows.examples[one.value])}; check {check}"
    )


def _by_status(counts: Mapping[str, int]) -> dict[RecordStatus, int]:
    return {status: counts.get(status.value, 0) for status in RecordStatus}


def _histogram(of: Mapping[RecordStatus, int]) -> str:
    most = sorted(of.items(), key=lambda item: (-item[1], item[0].value))
    told = ", ".join(f"{count} {status.value}" for status, count in most if count)
    return f"of all rows: {told or 'none'}"


def _example(counts: Mapping[RecordStatus, int], reason_of: Callable[[RecordStatus], str]) -> str:
    shown = (*_FAILURES, RecordStatus.TEXT_ONLY)
    found = next((status for status in shown if counts[status]), None)
    return "" if found is None else f"; the first: {reason_of(found)}"
