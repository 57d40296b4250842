"""Stage ``build-jsonl``: a source's records become questions with stable ids (``qa_record.v1``)."""

from collections import Counter
from functools import cache

import polars as pl

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import RecordsConfig
from data_contracts.enums import RecordStatus
from data_contracts.errors import SdrpnError
from data_contracts.registry import empty_frame
from sdrpn_core.records import Row, SourceFile, build_records
from tasks import plan
from tasks.artifact_store import ArtifactStore
from tasks.download import IMAGES_FOLDER, RECORDS_NAME, parse_records
from tasks.source_files import read_source_file
from tasks.stage import FrameShard, StageRun, run_stage


class NoUsableRecords(SdrpnError):
    """Not one record of a source can be asked; the message says why."""


def build_jsonl(
    run: StageRun, files: ArtifactRef, source_name: str, settings: RecordsConfig
) -> ArtifactRef:
    """Make the questions of one downloaded source.

    Raises:
        NoUsableRecords: if nothing in it can be asked.
    """
    recipe = plan.records_recipe(run.store.manifest(files), source_name, settings)

    @cache
    def rows() -> list[Row]:
        return _build(run.store, files, source_name, settings)

    def make_shard(index: int) -> FrameShard:
        chosen = [rows()[i] for i in plan.shard_range(len(rows()), recipe.num_shards, index)]
        counts = Counter(plan.status_statistic(row["status"]) for row in chosen)
        schema = empty_frame(recipe.schema_id).schema
        return FrameShard(pl.DataFrame(chosen, schema=schema), counts)

    return run_stage(run, recipe, make_shard)


def _build(
    store: ArtifactStore, files: ArtifactRef, source_name: str, settings: RecordsConfig
) -> list[Row]:
    table = {row["path"]: row for row in store.read_frame(files).iter_rows(named=True)}
    mix = table.pop(RECORDS_NAME)
    images = {
        path.removeprefix(IMAGES_FOLDER): SourceFile(row["uri"], row["sha256"], row["num_bytes"])
        for path, row in table.items()
        if path.startswith(IMAGES_FOLDER)
    }
    records = parse_records(read_source_file(store, mix["uri"], mix["sha256"]), mix["uri"])
    rows = build_records(records, source_name, settings, images)
    _require_usable(rows, source_name)
    return rows


def _require_usable(rows: list[Row], source_name: str) -> None:
    counts = Counter(row["status"] for row in rows)
    if counts[RecordStatus.OK.value]:
        return
    found = ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "none"
    example = f"; the first: {rows[0]['reason']}" if rows else ""
    raise NoUsableRecords(
        f"source {source_name!r}: not one of its records can be asked ({found}){example}; "
        "check `records` and `images`"
    )
